import pytest

from hip_engine.device import LaunchRecord
from hip_engine.errors import RouteNotBuilt, UnknownRoute
from hip_engine.routes import BUILT, Route, observe, resolve


@pytest.mark.parametrize("text", ["fused/banana", "manual", "", "valu/manual", "manual/valu/x"])
def test_an_unknown_route_is_refused_with_the_words_there_are(text):
    with pytest.raises(UnknownRoute, match="manual, fused, auto.*valu, mfma, auto"):
        Route.parse(text)


def test_a_route_reads_back_as_it_was_written():
    assert str(Route.parse("fused/mfma")) == "fused/mfma"


@pytest.mark.parametrize("text", ["manual/valu", "auto/auto", "auto/valu", "manual/auto"])
def test_auto_becomes_a_built_route_and_says_why(text):
    route, reason = resolve(Route.parse(text))
    assert route in BUILT
    assert reason == "asked for" or text in reason


def record(symbol, **executed):
    return LaunchRecord(symbol, "co", (1, 1, 1), (64, 1, 1), executed)


MANUAL = [record("rope", valu=9), record("kv_append_f16", valu=9)]
OBSERVED = {
    "manual_valu": ([*MANUAL, record("attn_manual_valu_f16_h64_g4", valu=9)], "manual/valu"),
    "the_label_does_not_count": (
        [*MANUAL, record("attn_manual_mfma_f16_h64_g4", valu=9)],
        "manual/valu",
    ),
    "executed_matrix_cores_do": (
        [*MANUAL, record("attn_manual_valu_f16_h64_g4", valu=9, mfma=3)],
        "manual/mfma",
    ),
    "one_kernel_for_all_is_fused": ([record("attn_fused_mfma_f16", mfma=1)], "fused/mfma"),
    "gemv_on_matrix_cores_is_not_attention": (
        [*MANUAL, record("gemm_q4_k", mfma=5), record("attn_x", valu=1)],
        "manual/valu",
    ),
    "nothing_ran": ([], "none/none"),
    "nobody_counted": ([*MANUAL, record("attn_x")], "manual/uncounted"),
}


@pytest.mark.parametrize("case", OBSERVED)
def test_a_route_is_observed_from_what_executed(case):
    records, expected = OBSERVED[case]
    assert observe(records).observed == expected


def test_no_route_is_promised_that_is_not_built():
    built = set(map(str, BUILT))
    for text in ("fused/mfma", "fused/valu", "manual/mfma"):
        if text not in built:
            with pytest.raises(RouteNotBuilt, match="built are manual/valu"):
                resolve(Route.parse(text))
