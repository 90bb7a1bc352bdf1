"""The model as a table: each site, the sites it is computed from, its weights and its function.

The forward, the replay and the bounds all read this table, so an op has one definition.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import jax
import jax.numpy as jnp

from greta_jax import ops
from greta_jax.architectures import Architecture
from greta_jax.config import LayerConfig
from greta_jax.precision import Arithmetic, stored


@dataclass(frozen=True)
class Op:
    """One row. `inputs` are sites of the same layer or one of the sources below.

    Sources: `resid.in` (the layer's input), `positions` (int, T), `rotation` (cosine and sine of
    the positions, two tensors), `token_ids`. `output`: dimensions after T, for a projection.
    """

    site: str
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    function: Callable
    output: str = ""
    bias: str | None = None


LAYER_OPS = (
    Op("attn.norm", ("resid.in",), ("attn_norm_D",), ops.rms_norm),
    Op("attn.q", ("attn.norm",), ("q_NHD",), ops.project, "NH"),
    Op("attn.k", ("attn.norm",), ("k_KHD",), ops.project, "KH"),
    Op("attn.v", ("attn.norm",), ("v_KHD",), ops.project, "KH"),
    Op("attn.q_rope", ("attn.q", "rotation"), (), ops.rotate),
    Op("attn.k_rope", ("attn.k", "rotation"), (), ops.rotate),
    Op("kv.k", ("attn.k_rope",), (), ops.keep),
    Op("kv.v", ("attn.v",), (), ops.keep),
    Op("attn.scores", ("attn.q_rope", "kv.k", "positions"), (), ops.attend_scores),
    Op("attn.probs", ("attn.scores",), (), ops.attend_probs),
    Op("attn.out", ("attn.probs", "kv.v", "positions"), (), ops.attend_values),
    Op("attn.proj", ("attn.out",), ("proj_DNH",), ops.project, "D"),
    Op("resid.mid", ("resid.in", "attn.proj"), (), ops.add),
    Op("ffn.norm", ("resid.mid",), ("ffn_norm_D",), ops.rms_norm),
    Op("ffn.gate", ("ffn.norm",), ("gate_FD",), ops.project, "F"),
    Op("ffn.up", ("ffn.norm",), ("up_FD",), ops.project, "F"),
    Op("ffn.act", ("ffn.gate", "ffn.up"), (), ops.swiglu),
    Op("ffn.down", ("ffn.act",), ("down_DF",), ops.project, "D"),
    Op("resid.out", ("resid.mid", "ffn.down"), (), ops.add),
)
EXPERT_OPS = (
    Op("ffn.router", ("ffn.norm",), ("router_ED",), ops.project, "E"),
    Op("ffn.route", ("ffn.router",), (), ops.choose_experts),
    Op("ffn.gate", ("ffn.norm",), ("gate_EFD",), ops.project, "EF"),
    Op("ffn.up", ("ffn.norm",), ("up_EFD",), ops.project, "EF"),
    Op("ffn.act", ("ffn.gate", "ffn.up"), (), ops.swiglu),
    Op("ffn.experts", ("ffn.act",), ("down_EDF",), ops.project_by_expert),
    Op("ffn.down", ("ffn.experts", "ffn.route"), (), ops.mix_experts),
)
"""A mixture of experts in place of ffn.gate to ffn.down; all of them compute every token."""
LAYER_OP = {op.site: op for op in LAYER_OPS}
FINAL_NORM = Op("final.norm", ("resid.in",), ("final_norm_D",), ops.rms_norm)
LOGITS = Op("logits", ("final.norm",), ("unembed_VD",), ops.unembed, "V")
GATES = {"silu": ops.swiglu, "gelu": ops.geglu}
QK_NORMS = {"head": ops.rms_norm, "all": ops.rms_norm_of_all_heads}
BIASED = {"attn.q": "q_bias_NH", "attn.k": "k_bias_KH", "attn.v": "v_bias_KH"}
KV_SITES = {"kv.k": "k", "kv.v": "v"}

INPUTS: dict[str, tuple[str, ...]] = {
    "embed": ("token_ids",),
    **{op.site: op.inputs for op in (*LAYER_OPS, FINAL_NORM, LOGITS)},
    "attn.q_rope": ("attn.q", "positions"),
    "attn.k_rope": ("attn.k", "positions"),
    "attn.scores": ("attn.q_rope", "kv.k"),
    "attn.probs": ("attn.q_rope", "kv.k"),
    "attn.out": ("attn.q_rope", "kv.k", "kv.v"),
}
"""What a replay of each site takes. `resid.in` of `final.norm` is the last layer's resid.out.

Attention also takes `positions` (T); left out, the queries are the last T positions of the slab.
"""


@cache
def layer_ops(row: Architecture, scaled_residual: bool) -> tuple[Op, ...]:
    """The table of one architecture: llama's, changed where the row says so, in dataflow order.

    Sites that llama does not have: EXTRA_SITES of greta_jax.taps.
    """
    table = []
    for op in _with_experts() if row.experts else LAYER_OPS:
        if op.site in BIASED and row.qkv_bias:
            op = replace(op, bias=BIASED[op.site])
        if not row.pre_norms:
            if op.site in ("attn.norm", "ffn.norm"):
                continue
            skipped = {"attn.norm": "resid.in", "ffn.norm": "resid.mid"}
            op = replace(op, inputs=tuple(skipped.get(name, name) for name in op.inputs))
        if row.qk_norm and op.site in ("attn.q_rope", "attn.k_rope"):
            table.append(_qk_norm(row, op.inputs[0]))
            op = replace(op, inputs=(table[-1].site, *op.inputs[1:]))
        if row.rope == "halves" and op.function is ops.rotate:
            op = replace(op, function=ops.rotate_halves)
        if op.site == "ffn.act":
            op = replace(op, function=GATES[row.gate])
        if op.function is ops.add:
            if row.post_norms:
                part = op.inputs[1].split(".")[0]
                weight = f"{part}_post_norm_D"
                table.append(Op(f"{part}.post_norm", op.inputs[1:], (weight,), ops.rms_norm))
                op = replace(op, inputs=(op.inputs[0], table[-1].site))
            if scaled_residual:
                op = replace(op, function=ops.add_scaled)
        table.append(op)
    return tuple(table)


def _with_experts() -> tuple[Op, ...]:
    at, after = (LAYER_OPS.index(LAYER_OP[site]) for site in ("ffn.gate", "resid.out"))
    return (*LAYER_OPS[:at], *EXPERT_OPS, *LAYER_OPS[after:])


def _qk_norm(row: Architecture, source: str) -> Op:
    letter = source[-1]
    suffix = {"q": "NH", "k": "KH"}[letter] if row.qk_norm == "all" else "H"
    weight = f"{letter}_norm_{suffix}"
    return Op(f"attn.{letter}_norm", (source,), (weight,), QK_NORMS[row.qk_norm])


def evaluate(op: Op, how: Arithmetic, cfg: LayerConfig, inputs, weights) -> jax.Array:
    """One op: arguments cast to the compute dtype, the result rounded to the site's storage.

    XLA's own order is compiled whole; a chosen order runs primitive by primitive, so that nothing
    is fused across a rounding (greta_jax.reduce). Products of fp32 are of fp32 ("highest"): a GPU
    would otherwise round their factors to TF32.
    """
    run = _compiled if how.order == "native" else computed
    return run(op.function, cfg, how, tuple(inputs), tuple(weights))


def computed(function, cfg, how, inputs, weights):
    weights = [stored(w, how.weight).astype(how.compute) for w in weights]
    cast = (x.astype(how.compute) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in inputs)
    with jax.default_matmul_precision("highest"):
        return stored(function(cfg, how, *cast, *weights), how.store)


_compiled = partial(jax.jit, static_argnums=(0, 1, 2))(computed)
