from dataclasses import replace

import pytest

from hip_engine.config import ModelConfig
from hip_engine.errors import RouteNotBuilt, UnknownRoute
from hip_engine.kv_types import KV_TYPES
from hip_engine.routes import Route, check, resolve


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
    "mfma_of_fp32": (
        *("fused/mfma", "float32", CONFIG),
        "nearest are fused/valu, and fused/mfma with a cache of float16, bfloat16, float8_e4m3fnuz",
    ),
    "head_size": (
        *("manual/valu", "float8_e4m3fnuz", replace(CONFIG, H=112)),
        "manual/valu with a float8_e4m3fnuz cache.*head size 112: nearest are 96 and 128",
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_an_impossible_route_is_refused_with_what_is_possible(case):
    text, dtype, config, message = IMPOSSIBLE[case]
    with pytest.raises(RouteNotBuilt, match=message):
        resolve(Route.parse(text), KV_TYPES[dtype], config)


def test_what_needs_no_model_is_refused_without_one():
    with pytest.raises(RouteNotBuilt, match="nearest are auto/valu"):
        check(Route("auto", "mfma"), KV_TYPES["float32"])
