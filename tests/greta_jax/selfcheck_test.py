"""The self-check passes on the oracle, and each mistake of its reference makes a law fail."""

from dataclasses import replace

import jax.numpy as jnp
import pytest

from greta_jax import graph, ops
from greta_jax.gguf.dequantize import dequantize
from greta_jax.model import Oracle
from greta_jax.op_bounds import OP_BOUNDS
from greta_jax.precision import Policy
from greta_jax.selfcheck import LAWS, selfcheck


@pytest.mark.parametrize("which", ["tiny_path", "quantised_path"])
@pytest.mark.parametrize("policy", [Policy.fp64, Policy.fp32])
def test_every_law_holds(which, policy, request):
    oracle = Oracle.open(request.getfixturevalue(which), policy())
    findings = selfcheck(oracle, quick=policy is Policy.fp32)
    assert len(findings) == len(LAWS)
    assert [str(f) for f in findings if not f.passed] == []


def only_64_keys(cfg, how, score_TNS):
    """R8: the reference that summed the last 64 keys, normalised over all."""
    prob_TNS = ops.attend_probs(cfg, how, score_TNS)
    recent = jnp.arange(prob_TNS.shape[-1]) >= prob_TNS.shape[-1] - 64 - 28
    return jnp.where(recent[None, None, :], prob_TNS, 0)


def only_64_keys_renormalised(cfg, how, score_TNS):
    recent = jnp.arange(score_TNS.shape[-1]) >= score_TNS.shape[-1] - 64 - 28
    return ops.attend_probs(cfg, how, jnp.where(recent[None, None, :], score_TNS, -jnp.inf))


def heads_mixed_up(cfg, how, q_TNH, k_SKH, positions_T):
    return ops.attend_scores(cfg, how, q_TNH, jnp.roll(k_SKH, 1, axis=1), positions_T)


def future_seen(cfg, how, q_TNH, k_SKH, positions_T):
    return ops.attend_scores(cfg, how, q_TNH, k_SKH, positions_T + 1)


def rotated_too_far(cfg, how, x_TNH, cos_TR, sin_TR):
    return ops.rotate(cfg, how, x_TNH, cos_TR * (1 + 1e-6), sin_TR)


def one_in_single(cfg, how, gate_TF, up_TF):
    return ops.swiglu(cfg, how, gate_TF.astype(jnp.float32).astype(gate_TF.dtype), up_TF)


def eps_outside_the_root(cfg, how, x_TD, scale_D):
    bare = ops.rms_norm(replace(cfg, rms_eps=0.0), how, x_TD, scale_D)
    return bare / (1 + x_TD.dtype.type(cfg.rms_eps))


MISTAKES = {
    "attn.probs": [only_64_keys, only_64_keys_renormalised],
    "attn.scores": [heads_mixed_up, future_seen],
    "attn.q_rope": [rotated_too_far],
    "ffn.act": [one_in_single],
    "attn.norm": [eps_outside_the_root],
}


@pytest.mark.parametrize(
    "site, mistake", [(s, m) for s, ms in MISTAKES.items() for m in ms], ids=lambda x: str(x)[:30]
)
def test_a_mistake_in_the_oracle_makes_a_law_fail(tiny_path, monkeypatch, site, mistake):
    broken = tuple(
        replace(op, function=mistake) if op.site == site else op for op in graph.LAYER_OPS
    )
    monkeypatch.setitem(
        OP_BOUNDS, mistake.__name__, OP_BOUNDS[graph.LAYER_OP[site].function.__name__]
    )
    for op in broken:
        monkeypatch.setitem(graph.LAYER_OP, op.site, op)
    monkeypatch.setattr("greta_jax.model.layer_ops", lambda *row: broken)
    findings = selfcheck(Oracle.open(tiny_path, Policy.fp64()), quick=True)
    assert any(not finding.passed for finding in findings)


def test_a_wrong_decoding_breaks_the_law_of_gguf(quantised_path, monkeypatch):
    def swapped(raw, dtype, store="float32"):
        return dequantize((raw >> 4) | (raw << 4), dtype, store)

    monkeypatch.setattr("greta_jax.selfcheck.dequantize", swapped)
    findings = selfcheck(Oracle.open(quantised_path, Policy.fp64()), quick=True)
    assert [f.law for f in findings if not f.passed] == ["weights_are_decoded_as_gguf_does"]
