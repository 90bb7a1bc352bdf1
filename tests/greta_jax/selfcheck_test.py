"""The self-check passes on every architecture, and each law catches a mistake of the oracle."""

from dataclasses import replace

import jax.numpy as jnp
import pytest

from greta_jax import graph, ops
from greta_jax.gguf.dequantize import dequantize
from greta_jax.model import Oracle
from greta_jax.op_bounds import OP_BOUNDS
from greta_jax.precision import Policy
from greta_jax.replay import MODEL_OP
from greta_jax.selfcheck import LAYER_LAWS, prefill_equals_prefill_then_decode, selfcheck
from tests.tiny_gguf import FEATURES, write_architecture

LAWS = (prefill_equals_prefill_then_decode, *LAYER_LAWS)


@pytest.mark.parametrize("which", ["tiny_path", "quantised_path"])
@pytest.mark.parametrize("policy", [Policy.fp64, Policy.fp32])
def test_every_law_holds(which, policy, request):
    findings = selfcheck(Oracle.open(request.getfixturevalue(which), policy()))
    assert [finding.law for finding in findings] == [law.__name__ for law in LAWS]
    assert [str(f) for f in findings if not f.passed] == []


@pytest.mark.parametrize("name", [name for name in FEATURES if name != "llama"])
def test_every_law_holds_in_other_architectures(tmp_path, name):
    oracle = Oracle.open(write_architecture(tmp_path / "model.gguf", name), Policy.fp64())
    findings = selfcheck(oracle, quick=True)
    assert [finding.law for finding in findings] == [law.__name__ for law in LAYER_LAWS]
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


def near_slots_preferred(cfg, how, q_TNH, k_SKH, positions_T):
    score_TNS = ops.attend_scores(cfg, how, q_TNH, k_SKH, positions_T)
    slot_S = jnp.arange(score_TNS.shape[-1]).astype(score_TNS.dtype)
    return score_TNS + slot_S[None, None] * 1e-9


def scale_of_another_head_size(cfg, how, q_TNH, k_SKH, positions_T):
    other = replace(cfg, score_scale=(cfg.head_dim + 1) ** -0.5)
    return ops.attend_scores(other, how, q_TNH, k_SKH, positions_T)


def values_in_single(cfg, how, prob_TNS, v_SKH, positions_T):
    v_SKH = v_SKH.astype(jnp.float32).astype(v_SKH.dtype)
    return ops.attend_values(cfg, how, prob_TNS, v_SKH, positions_T)


def unwritten_values_read(cfg, how, prob_TNS, v_SKH, positions_T):
    return ops.attend_values(cfg, how, prob_TNS, v_SKH, positions_T + v_SKH.shape[0])


def turned_the_other_way(cfg, how, x_TNH, cos_TR, sin_TR):
    return ops.rotate(cfg, how, x_TNH, cos_TR, -sin_TR)


def rotated_too_far(cfg, how, x_TNH, cos_TR, sin_TR):
    return ops.rotate(cfg, how, x_TNH, cos_TR * (1 + 1e-6), sin_TR)


def angles_in_single(cfg, how, x_TNH, cos_TR, sin_TR):
    angle_TR = jnp.arctan2(sin_TR, cos_TR).astype(jnp.float32).astype(cos_TR.dtype)
    return ops.rotate(cfg, how, x_TNH, jnp.cos(angle_TR), jnp.sin(angle_TR))


def gate_in_single(cfg, how, gate_TF, up_TF):
    return ops.swiglu(cfg, how, gate_TF.astype(jnp.float32).astype(gate_TF.dtype), up_TF)


def eps_outside_the_root(cfg, how, x_TD, scale_D):
    bare = ops.rms_norm(replace(cfg, rms_eps=0.0), how, x_TD, scale_D)
    return bare / (1 + x_TD.dtype.type(cfg.rms_eps))


def weights_in_half(cfg, how, x, rows):
    return ops.project(cfg, how, x, rows.astype(jnp.bfloat16).astype(rows.dtype))


MISTAKES = {
    "prefill_equals_prefill_then_decode": ("attn.scores", future_seen),
    "grouped_heads_equal_replicated_heads": ("attn.scores", heads_mixed_up),
    "scores_depend_on_relative_position": ("attn.q_rope", turned_the_other_way),
    "order_of_cached_positions_is_nothing": ("attn.scores", near_slots_preferred),
    "attention_weights_sum_to_one": ("attn.probs", only_64_keys),
    "equal_keys_share_attention_equally": ("attn.probs", only_64_keys_renormalised),
    "attention_is_linear_in_values": ("attn.out", values_in_single),
    "unseen_slots_do_not_matter": ("attn.out", unwritten_values_read),
    "rotation_keeps_length": ("attn.q_rope", rotated_too_far),
    "attention_agrees_with_multiprecision": ("attn.scores", scale_of_another_head_size),
    "norm_agrees_with_multiprecision": ("final.norm", eps_outside_the_root),
    "gate_agrees_with_multiprecision": ("ffn.act", gate_in_single),
    "rotation_agrees_with_multiprecision": ("attn.q_rope", angles_in_single),
    "a_projection_agrees_with_multiprecision": ("attn.q", weights_in_half),
}


@pytest.mark.parametrize("law", LAWS[:-1], ids=lambda law: law.__name__)
def test_a_mistake_in_the_oracle_makes_the_law_fail(tiny_path, monkeypatch, law):
    site, mistake = MISTAKES[law.__name__]
    rows = (*graph.LAYER_OPS, graph.FINAL_NORM)
    (right,) = (op for op in rows if op.site == site)
    wrong = replace(right, function=mistake)
    monkeypatch.setitem(OP_BOUNDS, mistake.__name__, OP_BOUNDS[right.function.__name__])
    monkeypatch.setitem(graph.LAYER_OP, site, wrong)
    broken = tuple(wrong if op.site == site else op for op in graph.LAYER_OPS)
    monkeypatch.setattr("greta_jax.model.layer_ops", lambda *row: broken)
    if site == "final.norm":
        for module in ("model", "bounds"):
            monkeypatch.setattr(f"greta_jax.{module}.FINAL_NORM", wrong)
        monkeypatch.setitem(MODEL_OP, site, wrong)
    findings = selfcheck(Oracle.open(tiny_path, Policy.fp64()))
    assert not {finding.law: finding.passed for finding in findings}[law.__name__]


def test_a_wrong_decoding_breaks_the_law_of_gguf(quantised_path, monkeypatch):
    def swapped(raw, dtype, store="float32"):
        return dequantize((raw >> 4) | (raw << 4), dtype, store)

    monkeypatch.setattr("greta_jax.selfcheck.dequantize", swapped)
    findings = selfcheck(Oracle.open(quantised_path, Policy.fp64()), quick=True)
    assert [f.law for f in findings if not f.passed] == ["weights_are_decoded_as_gguf_does"]
