from dataclasses import replace

import pytest

from hip_engine.config import ModelConfig
from hip_engine.device import LaunchRecord
from hip_engine.errors import RouteNotBuilt, UnknownRoute
from hip_engine.kv_types import KV_TYPES
from hip_engine.routes import Route, observe, resolve


@pytest.mark.parametrize("text", ["fused/banana", "manual", "", "valu/manual", "manual/valu/x"])
def test_an_unknown_route_is_refused_with_the_words_there_are(text):
    with pytest.raises(UnknownRoute, match="manual, fused, auto.*valu, mfma, auto"):
        Route.parse(text)


def test_a_route_reads_back_as_it_was_written():
    assert str(Route.parse("fused/mfma")) == "fused/mfma"


CONFIG = ModelConfig(2, 512, 512, 8, 2, 64, 100, 128, 1e-5, 1e4)
RESOLVED = {
    "as_asked": ("manual/mfma", "float16", CONFIG, "manual/mfma", "asked for"),
    "small_groups": ("auto/auto", "float16", CONFIG, "fused/valu", "groups of 4"),
    "large_groups": ("auto/auto", "bfloat16", replace(CONFIG, K=1), "fused/mfma", "groups of 8"),
    "no_narrow_operands": ("manual/auto", "float32", CONFIG, "manual/valu", "float32 cache"),
}


@pytest.mark.parametrize("case", RESOLVED)
def test_auto_becomes_a_route_and_says_why(case):
    text, dtype, config, expected, why = RESOLVED[case]
    route, reason = resolve(Route.parse(text), KV_TYPES[dtype], config)
    assert str(route) == expected
    assert why in reason


IMPOSSIBLE = {
    "mfma_of_fp32": ("fused/mfma", "float32", CONFIG, "use fused/valu, or a float16"),
    "head_size": ("manual/valu", "float16", replace(CONFIG, H=10), "built are 64, 80, 96, 128"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_an_impossible_route_is_refused_with_what_is_possible(case):
    text, dtype, config, message = IMPOSSIBLE[case]
    with pytest.raises(RouteNotBuilt, match=message):
        resolve(Route.parse(text), KV_TYPES[dtype], config)


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
    "one_layer_differs": (
        [*MANUAL, record("attn_a", valu=1), record("attn_merge_chunks", valu=1)] * 2
        + [*MANUAL, record("attn_b", mfma=1)],
        "manual/mixed",
    ),
    "an_append_that_one_layer_lacks": (
        [*MANUAL, record("attn_a", valu=1), record("attn_a", valu=1)],
        "mixed/valu",
    ),
    "rope_apart_from_a_fused_append": ([record("rope"), record("attn_a", valu=1)], "mixed/valu"),
    "nothing_ran": ([], "none/none"),
    "nobody_counted": ([*MANUAL, record("attn_x")], "manual/uncounted"),
}


@pytest.mark.parametrize("case", OBSERVED)
def test_a_route_is_observed_from_what_executed(case):
    records, expected = OBSERVED[case]
    assert observe(records).observed == expected
