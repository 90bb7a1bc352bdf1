"""Counterfactuals: each differs from the truth, and from each other, by far more than rounding."""

import numpy as np
import pytest

from greta_jax.bounds import bound
from greta_jax.graph import INPUTS
from greta_jax.hypotheses import HYPOTHESES, counterfactuals
from greta_jax.hypotheses.attention import WINDOW
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from greta_jax.replay import replay
from greta_jax.taps import MODEL_SITES, Taps

SINGLE = {"store": "float32", "accumulate": "float32"}
DOUBLE = {"store": "float64", "accumulate": "float64"}
"""Two evaluations in binary64 are each within one bound of what is right."""
ROUNDING_ONLY = {"fp16_accumulation"}


@pytest.fixture(scope="module")
def captured(quantised_path):
    oracle = Oracle.open(quantised_path, Policy.fp64())
    ids = np.random.default_rng(8).integers(0, 131, WINDOW + 16)
    first = oracle.prefill(ids[:48])
    second = oracle.prefill(ids[48:-1], Taps.everything(), first.cache)
    third = oracle.decode(second.cache, int(ids[-1]), Taps.everything())
    return oracle, {"chunk": (second.taps, ids[48:-1], 48), "decode": (third.taps, ids[-1:], 79)}


def question(captured, site, phase, layer=1):
    oracle, runs = captured
    taps, ids, start = runs[phase]
    sources = {"token_ids": ids, "positions": start + np.arange(len(ids))}
    sources["resid.in"] = taps[1, "resid.out"] if site == "final.norm" else taps[0, "resid.out"]
    sources["final.norm"] = taps[-1, "final.norm"]
    inputs = {n: sources.get(n, taps.get((layer, n))) for n in INPUTS[site]}
    layer = -1 if site in MODEL_SITES else layer
    return oracle, site, layer, inputs, taps


@pytest.mark.parametrize("phase", ["chunk", "decode"])
@pytest.mark.parametrize("site", HYPOTHESES)
def test_every_hypothesis_is_far_from_the_truth_and_from_the_others(captured, site, phase):
    oracle, site, layer, inputs, taps = question(captured, site, phase)
    ref = replay(oracle, site, layer, inputs)
    floor = bound(oracle, site, layer, inputs, SINGLE)
    answers = counterfactuals(oracle, site, layer, inputs, taps)
    answers = {name: a for name, a in answers.items() if name not in ROUNDING_ONLY}
    assert answers or phase == "decode"
    for name, answer in answers.items():
        assert answer.shape == ref.shape, name
        rivals = {other: a for other, a in answers.items() if other != name} | {"truth": ref}
        for other, rival in rivals.items():
            if {name, other} == {"kv_base_of_layer_0", "kv_base_of_previous_layer"}:
                continue
            with np.errstate(invalid="ignore"):
                apart = np.abs(answer - rival)
            apart = np.where(np.isnan(apart), 0, apart)
            assert np.max(apart / floor) > 100, (site, name, other)


def test_every_hypothesis_applies_somewhere(captured):
    seen = set()
    for site in HYPOTHESES:
        for phase in ("chunk", "decode"):
            seen |= set(counterfactuals(*question(captured, site, phase)))
    missing = {name for table in HYPOTHESES.values() for name in table} - seen
    assert missing == {"rope_base_10000"}, "the tiny model has that base"


def test_attention_without_the_newest_key_is_the_softmax_of_the_others(captured):
    oracle, site, layer, inputs, taps = question(captured, "attn.out", "decode")
    got = counterfactuals(oracle, site, layer, inputs, taps)["newest_key_missing"]
    shorter = {k: v[:-1] if k.startswith("kv") else v for k, v in inputs.items()}
    error = np.abs(got - replay(oracle, site, layer, shorter))
    assert np.all(error <= 2 * bound(oracle, site, layer, shorter, DOUBLE)), error.max()


def test_kv_base_of_layer_0_does_not_apply_to_layer_0(captured):
    oracle, site, _, inputs, taps = question(captured, "attn.out", "decode", layer=0)
    assert "kv_base_of_layer_0" not in counterfactuals(oracle, site, 0, inputs, taps)


def test_fp16_accumulation_is_small_and_above_the_floor_of_fp32(captured):
    oracle, site, layer, inputs, taps = question(captured, "attn.out", "decode")
    ref = replay(oracle, site, layer, inputs)
    got = counterfactuals(oracle, site, layer, inputs, taps)["fp16_accumulation"]
    ratio = np.abs(got - ref) / bound(oracle, site, layer, inputs, SINGLE)
    assert 1 < ratio.max() and np.abs(got - ref).max() < 0.05 * np.abs(ref).max()
