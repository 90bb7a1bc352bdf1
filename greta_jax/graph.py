"""The model as a table: each site, the sites it is computed from, its weights and its function.

The forward, the replay and the bounds all read this table, so an op has one definition.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from greta_jax import ops
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
LAYER_OP = {op.site: op for op in LAYER_OPS}
FINAL_NORM = Op("final.norm", ("resid.in",), ("final_norm_D",), ops.rms_norm)
LOGITS = Op("logits", ("final.norm",), ("unembed_VD",), ops.project, "V")
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


def evaluate(op: Op, how: Arithmetic, cfg: LayerConfig, inputs, weights) -> jax.Array:
    """One op: arguments cast to the compute dtype, the result rounded to the site's storage.

    XLA's own order is compiled whole; a chosen order runs primitive by primitive, so that nothing
    is fused across a rounding (greta_jax.reduce).
    """
    run = _compiled if how.order == "native" else _evaluate
    return run(op.function, cfg, how, tuple(inputs), tuple(weights))


def _evaluate(function, cfg, how, inputs, weights):
    weights = [stored(w, how.weight).astype(how.compute) for w in weights]
    cast = (x.astype(how.compute) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in inputs)
    return stored(function(cfg, how, *cast, *weights), how.store)


_compiled = partial(jax.jit, static_argnums=(0, 1, 2))(_evaluate)
