"""Replay: each op on captured inputs."""

import numpy as np
import pytest

from greta_jax.bounds import bound
from greta_jax.errors import SiteError
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from greta_jax.replay import INPUTS, replay
from greta_jax.taps import LAYER_SITES, MODEL_SITES, SITES, Taps

LAYERS = range(2)


def in_all(dtype: str) -> dict[str, str]:
    """A declared precision: stored and accumulated in one dtype."""
    return {"store": dtype, "accumulate": dtype}


@pytest.fixture(scope="module")
def oracle(quantised_path):
    return Oracle.open(quantised_path, Policy.fp64())


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(8).integers(0, 131, 21)


@pytest.fixture(scope="module")
def captured(oracle, ids):
    """Everything of a prefill of all but the last token, then of one decode."""
    first = oracle.prefill(ids[:-1], Taps.everything())
    second = oracle.decode(first.cache, int(ids[-1]), Taps.everything())
    return {"prefill": (first.taps, 0, ids[:-1]), "decode": (second.taps, 20, ids[-1:])}


def inputs_of(site: str, layer: int, run) -> dict:
    taps, start, token_ids = run
    sources = {"token_ids": token_ids, "positions": start + np.arange(len(token_ids))}
    if site == "final.norm":
        sources["resid.in"] = taps[1, "resid.out"]
    elif site in LAYER_SITES:
        sources["resid.in"] = taps[layer - 1, "resid.out"] if layer else taps[-1, "embed"]
    sources["final.norm"] = taps[-1, "final.norm"]
    return {name: sources.get(name, taps.get((layer, name))) for name in INPUTS[site]}


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_replaying_the_oracle_s_own_inputs_gives_its_own_bits(oracle, captured, phase):
    run = captured[phase]
    for site in SITES:
        for layer in [-1] if site in MODEL_SITES else LAYERS:
            got = replay(oracle, site, layer, inputs_of(site, layer, run))
            ref = run[0][layer, site]
            if site in ("kv.k", "kv.v"):
                ref = ref[-len(got) :]
            assert got.shape == ref.shape, site
            assert np.array_equal(got, ref), (site, layer, np.abs(got - ref).max())


def test_a_replay_may_start_further_back(oracle, captured):
    taps = captured["prefill"][0]
    got = replay(oracle, "resid.out", 1, {"resid.mid": taps[1, "resid.mid"]})
    assert np.array_equal(got, taps[1, "resid.out"])


def test_attention_may_start_from_its_scores_or_its_weights(oracle, captured):
    """Of a slab that is no whole number of buckets, too."""
    for taps, _, _ in captured.values():
        probs = replay(oracle, "attn.probs", 0, {"attn.scores": taps[0, "attn.scores"]})
        assert np.array_equal(probs, taps[0, "attn.probs"])
        weighted = {"attn.probs": probs, "kv.v": taps[0, "kv.v"]}
        assert np.array_equal(replay(oracle, "attn.out", 0, weighted), taps[0, "attn.out"])


def test_attention_positions_default_to_the_last_of_the_slab(oracle, captured):
    taps = captured["prefill"][0]
    inputs = {name: taps[0, name] for name in INPUTS["attn.out"]}
    assert np.array_equal(replay(oracle, "attn.out", 0, inputs), taps[0, "attn.out"])
    rows = slice(4, 6)
    part = inputs | {"attn.q_rope": inputs["attn.q_rope"][rows], "positions": np.array([4, 5])}
    error = np.abs(replay(oracle, "attn.out", 0, part) - taps[0, "attn.out"][rows])
    assert np.all(error <= 2 * bound(oracle, "attn.out", 0, part, in_all("float64")))


def test_positions_change_rope_and_nothing_else_would(oracle, captured):
    taps = captured["prefill"][0]
    q = {"attn.q": taps[0, "attn.q"]}
    off_by_one = replay(oracle, "attn.q_rope", 0, q | {"positions": 1 + np.arange(20)})
    assert np.abs(off_by_one - taps[0, "attn.q_rope"]).max() > 0.1


def test_a_replay_in_another_precision_differs_by_little(oracle, captured):
    single = oracle.with_policy(Policy.fp32())
    inputs = inputs_of("attn.q", 0, captured["prefill"])
    got, ref = replay(single, "attn.q", 0, inputs), captured["prefill"][0][0, "attn.q"]
    assert got.dtype == np.float32
    error = np.abs(got - ref)
    assert 0 < error.max() and np.all(
        error <= bound(oracle, "attn.q", 0, inputs, in_all("float32"))
    )


@pytest.mark.parametrize(
    "site, drop, extra, words",
    [
        ("attn.q", "attn.norm", {}, "no inputs|inputs have"),
        ("attn.q_rope", "positions", {}, "without positions"),
        ("attn.out", "kv.v", {}, "without kv.v"),
        ("resid.mid", "attn.proj", {}, "without"),
        ("attn.q", None, {"attn.k": 0}, "does not depend on attn.k"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(oracle, captured, site, drop, extra, words):
    inputs = inputs_of(site, 0, captured["prefill"])
    inputs.pop(drop, None)
    inputs |= {name: captured["prefill"][0][0, name] for name in extra}
    with pytest.raises(SiteError, match=words):
        replay(oracle, site, 0, inputs)


def test_layer_that_does_not_exist_is_refused(oracle, captured):
    with pytest.raises(SiteError, match="layer 2 does not exist"):
        replay(oracle, "attn.q", 2, inputs_of("attn.q", 0, captured["prefill"]))
