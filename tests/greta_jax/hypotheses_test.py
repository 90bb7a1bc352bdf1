"""Counterfactuals: each differs from the truth, and from each other, by far more than rounding."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.align import naming
from greta_jax.bounds import bound
from greta_jax.graph import INPUTS
from greta_jax.hypotheses import FALLBACKS, HYPOTHESES, SHOWS, counterfactuals
from greta_jax.hypotheses.attention import WINDOW
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from greta_jax.replay import replay
from greta_jax.taps import MODEL_SITES, Taps

SINGLE = {"store": "float32", "accumulate": "float32"}
DOUBLE = {"store": "float64", "accumulate": "float64"}
"""Two evaluations in binary64 are each within one bound of what is right."""
ROUNDING_ONLY = {
    *("fp16_accumulation", "scores_rounded_to_fp16", "epsilon_missing", "epsilon_outside_the_root")
}
"""Too near the truth, on these inputs at least, to be far from it in floors."""
FAMILIES = (
    "kv_base_of",
    "weight_of",
    "epsilon",
    "positions_restart",
    "cache_ignored",
    "causal_mask",
    "read_a_page",
)
"""Mistakes that may be one on some inputs: chunks of other sizes, two layers that are both 0."""
MARGIN = 10
"""A name takes a runner-up that is so many times worse (experiments/align/naming.py)."""
NEEDS_MORE = {
    *("base_of_another_model", "position_off_by_a_constant", "epsilon_of_another_model"),
    *("rows_of_other_tokens", "splits_of_256_merged_without_rescale", "read_a_page_of_256_early"),
    *("pages_of_256_all_on_the_first", "pages_of_64_all_on_the_first", "weight_of_the_next_layer"),
    *("rows_of_the_product_permuted", "maximum_not_subtracted", "scores_in_fp16_before_the_scale"),
    "stored_at_another_scale",
}
"""Asked of what an engine computed, or of more tokens than these: see the tests below."""


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
def test_every_hypothesis_can_be_told_from_the_truth_and_from_the_others(captured, site, phase):
    oracle, site, layer, inputs, taps = question(captured, site, phase)
    ref = replay(oracle, site, layer, inputs)
    answers = counterfactuals(oracle, site, layer, inputs, taps)
    assert answers or phase == "decode"

    def rounding(oracle, site, layer, inputs):
        return bound(oracle, site, layer, inputs, SINGLE)

    floors = counterfactuals(oracle, site, layer, inputs, taps, rounding)
    assert floors.keys() == answers.keys()
    for name in answers.keys() - ROUNDING_ONLY:
        assert answers[name].shape == floors[name].shape == ref.shape, name
        floor = np.abs(floors[name]) + np.finfo(np.float32).tiny
        rivals = {other: a for other, a in answers.items() if other != name} | {"truth": ref}
        for other, rival in rivals.items():
            family = any(name.startswith(f) and other.startswith(f) for f in FAMILIES)
            if family or other in ROUNDING_ONLY:
                continue
            with np.errstate(invalid="ignore"):
                apart = np.abs(answers[name] - rival)
            assert np.nanmax(apart / floor) > MARGIN, (site, name, other)


@pytest.mark.parametrize("phase", ["chunk", "decode"])
@pytest.mark.parametrize("site", HYPOTHESES)
def test_every_mistake_is_named_or_listed_with_the_input_that_separates(captured, site, phase):
    oracle, site, layer, inputs, taps = question(captured, site, phase)

    def rounding(oracle, site, layer, inputs):
        return bound(oracle, site, layer, inputs, SINGLE)

    asked = oracle, site, layer, inputs
    answers = counterfactuals(*asked, taps)
    floors = counterfactuals(*asked, taps, rounding)
    right = naming.Explanation(replay(*asked), rounding(*asked))
    said = {
        name: naming.Explanation(answer, np.abs(np.nan_to_num(floors[name])), SHOWS.get(name, ""))
        for name, answer in answers.items()
    }
    for name, answer in answers.items():
        found = naming.name(np.where(np.isposinf(answer), np.nan, answer), right, said)
        if found.candidates:
            assert name in found.candidates and " shows " in found.next_step, (name, found)
        else:
            assert found.named == name or name in ROUNDING_ONLY, (name, found)


def test_every_hypothesis_applies_somewhere(captured):
    seen = set()
    for site in HYPOTHESES:
        for phase in ("chunk", "decode"):
            seen |= set(counterfactuals(*question(captured, site, phase)))
    assert {name for table in HYPOTHESES.values() for name in table} - seen == NEEDS_MORE


def test_a_parameter_is_read_from_what_was_computed(captured):
    oracle, site, layer, inputs, _ = question(captured, "attn.q_rope", "chunk")
    early = inputs | {"positions": np.arange(len(inputs["positions"]))}
    other = replace(oracle.config, rope_base=2e6)
    cases = {
        "position_off_by_a_constant": (oracle, inputs, {"positions": inputs["positions"] + 17}),
        "base_of_another_model": (
            Oracle(oracle.file, other, oracle.weights, oracle.policy),
            early,
            {},
        ),
    }
    for name, (wrong, asked, changes) in cases.items():
        got = replay(wrong, site, layer, asked | changes)
        answer = counterfactuals(oracle, site, layer, asked, got=got)[name]
        np.testing.assert_allclose(answer, got, rtol=0, atol=1e-12)
        assert name not in counterfactuals(
            oracle, site, layer, asked, got=replay(oracle, site, layer, asked)
        )


def test_an_epsilon_is_read_from_the_token_with_the_least_norm(captured):
    oracle, site, layer, inputs, _ = question(captured, "attn.norm", "chunk")
    small = {"resid.in": 1e-3 * np.asarray(inputs["resid.in"])}
    other = Oracle(oracle.file, replace(oracle.config, rms_eps=3e-4), oracle.weights, oracle.policy)
    got = replay(other, site, layer, small)
    answer = counterfactuals(oracle, site, layer, small, got=got)["epsilon_of_another_model"]
    np.testing.assert_allclose(answer, got, rtol=1e-12)


def test_tokens_that_were_fed_are_read_from_their_rows(captured):
    oracle, site, layer, inputs, _ = question(captured, "embed", "chunk")
    got = replay(oracle, site, layer, {"token_ids": inputs["token_ids"][::-1]})
    answer = counterfactuals(oracle, site, layer, inputs, got=got)["rows_of_other_tokens"]
    np.testing.assert_array_equal(answer, got)


def test_one_factor_a_head_is_read_where_nothing_else_holds(captured):
    oracle, site, layer, inputs, _ = question(captured, "attn.q", "chunk")
    right = replay(oracle, site, layer, inputs)
    got = right * (1 + np.arange(right.shape[1]))[:, None]
    answer = counterfactuals(oracle, site, layer, inputs, got=got, table=FALLBACKS)
    np.testing.assert_allclose(answer["scaled_by_a_constant"], got, rtol=1e-12)


def test_a_power_of_two_a_head_is_read_from_the_cache(captured):
    oracle, site, layer, inputs, _ = question(captured, "kv.k", "chunk")
    right = np.asarray(replay(oracle, site, layer, inputs))
    factor = np.exp2(-np.arange(right.shape[1]) - 2.0)[:, None]
    answer = counterfactuals(oracle, site, layer, inputs, got=right * factor)
    np.testing.assert_array_equal(answer["stored_at_another_scale"], right * factor)
    for got in (right, 0.5 * right, np.zeros_like(right)):
        answer = counterfactuals(oracle, site, layer, inputs, got=got)
        assert "stored_at_another_scale" not in answer


def test_attention_without_the_newest_key_is_the_softmax_of_the_others(captured):
    oracle, site, layer, inputs, taps = question(captured, "attn.out", "decode")
    got = counterfactuals(oracle, site, layer, inputs, taps)["newest_key_missing"]
    shorter = {k: v[:-1] if k.startswith("kv") else v for k, v in inputs.items()}
    error = np.abs(got - replay(oracle, site, layer, shorter))
    assert np.all(error <= 2 * bound(oracle, site, layer, shorter, DOUBLE)), error.max()


def in_fp32(captured, times, weights_of, phase="chunk"):
    """Attention on queries that are `times` as large, with weights of its scores taken in fp32; and
    what a mistake says of it, with the floor."""
    oracle, site, layer, inputs, _ = question(captured, "attn.out", phase)
    inputs = inputs | {"attn.q_rope": times * inputs["attn.q_rope"]}
    of_scores = {name: value for name, value in inputs.items() if name != "kv.v"}
    score_TNS = replay(oracle, "attn.scores", layer, of_scores).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        weight_TNS = weights_of(score_TNS)
        prob_TNS = weight_TNS / weight_TNS.sum(-1, keepdims=True)
        v_SKH = inputs["kv.v"].astype(np.float32)
        T, N, S = prob_TNS.shape
        prob_TKGS = prob_TNS.reshape(T, v_SKH.shape[1], -1, S)
        got_TNH = np.einsum("TKGS,SKH->TKGH", prob_TKGS, v_SKH).reshape(T, N, -1)

    def rounding(oracle, site, layer, inputs):
        return bound(oracle, site, layer, inputs, SINGLE)

    asked = oracle, site, layer, inputs
    answers = counterfactuals(*asked, {}, got=got_TNH)
    floors = counterfactuals(*asked, {}, rounding, got=got_TNH)
    said = {
        name: naming.Explanation(answer, np.abs(np.nan_to_num(floors[name])), SHOWS.get(name, ""))
        for name, answer in answers.items()
    }
    return got_TNH, naming.name(got_TNH, naming.Explanation(replay(*asked), rounding(*asked)), said)


def test_a_softmax_without_its_maximum_is_named_by_what_overflows(captured):
    for times in (60.0, 120.0):
        got_TNH, found = in_fp32(captured, times, np.exp)
        finite = np.isfinite(got_TNH)
        assert finite.any() and not finite.all()
        assert found.named == "maximum_not_subtracted", found
    assert "maximum_not_subtracted" not in in_fp32(captured, 1.0, np.exp)[1].residuals


def test_scores_that_overflow_fp16_before_their_scale_are_named_by_what_overflows(captured):
    """Sums in fp16 overflow there too, and round what is left."""
    scale = np.float32(captured[0].config.layer(1).score_scale)

    def weights_of(score_TNS):
        kept = (score_TNS / scale).astype(np.float16).astype(np.float32) * scale
        return np.exp(kept - kept.max(-1, keepdims=True))

    oracle, site, layer, inputs, _ = question(captured, "attn.scores", "chunk")
    product_TNS = replay(oracle, site, layer, inputs) / scale
    half_of_the_rows = np.finfo(np.float16).max / np.median(product_TNS.max(-1))
    got_TNH, found = in_fp32(captured, half_of_the_rows, weights_of)
    finite = np.isfinite(got_TNH)
    assert finite.any() and not finite.all()
    assert found.named == "scores_in_fp16_before_the_scale", found
    assert np.isfinite(found.residuals["fp16_accumulation"])


def test_kv_base_of_layer_0_does_not_apply_to_layer_0(captured):
    oracle, site, _, inputs, taps = question(captured, "attn.out", "decode", layer=0)
    assert "kv_base_of_layer_0" not in counterfactuals(oracle, site, 0, inputs, taps)


def test_fp16_accumulation_is_small_and_above_the_floor_of_fp32(captured):
    oracle, site, layer, inputs, taps = question(captured, "attn.out", "decode")
    ref = replay(oracle, site, layer, inputs)
    got = counterfactuals(oracle, site, layer, inputs, taps)["fp16_accumulation"]
    ratio = np.abs(got - ref) / bound(oracle, site, layer, inputs, SINGLE)
    assert 1 < ratio.max() and np.abs(got - ref).max() < 0.05 * np.abs(ref).max()
