"""Named counterfactual versions of ops: what a known mistake would have computed.

A judge that sees a structural error compares what it got with each of these on the same captured
inputs. A hypothesis is only worth naming if its residual reaches the floor and beats the runner-up.
Sources of the mistakes: the GRETA record, rows R, L and G of greta.md section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from greta_jax.gguf.blocks import FORMATS
from greta_jax.graph import INPUTS, LAYER_OP
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from greta_jax.replay import replay
from greta_jax.taps import MODEL_LAYER

Tensors = dict[str, np.ndarray]
WINDOW, TILE = 64, 16
"""Keys that R8's reference summed; edge of the matrix-core tile that R9 transposed."""


@dataclass(frozen=True)
class Question:
    """One op as captured: `inputs` are INPUTS[site]; `others` are more captured tensors, if any,
    by (layer, site), for the mistakes that mix layers."""

    oracle: Oracle
    site: str
    layer: int
    inputs: Tensors
    others: dict[tuple[int, str], np.ndarray]
    evaluate: Callable = replay
    """`replay`, or another function of its arguments whose rows belong to the same elements, such
    as a bound of what rounding may do: what a mistake permutes, it permutes of that too."""

    def ask(self, **changes) -> np.ndarray:
        """The op on changed inputs (dots in names written as underscores twice)."""
        changed = {name.replace("__", "."): value for name, value in changes.items()}
        return self.evaluate(self.oracle, self.site, self.layer, self.inputs | changed)

    def under(self, policy: Policy) -> np.ndarray:
        """The op on the same inputs in another precision."""
        return self.evaluate(self.oracle.with_policy(policy), self.site, self.layer, self.inputs)


Hypothesis = Callable[[Question], np.ndarray | None]
"""The counterfactual tensor, or None where the mistake cannot show or its inputs are not there."""


def counterfactuals(
    oracle: Oracle, site: str, layer: int, inputs: Tensors, others=None, evaluate=replay
) -> Tensors:
    """Every hypothesis that applies to one captured op, by name, in the shape of `replay`.

    Elements of which a hypothesis says nothing are NaN. Raises SiteError as `replay`.
    """
    question = Question(oracle, site, layer, inputs, others or {}, evaluate)
    answers = {name: ask(question) for name, ask in HYPOTHESES.get(site, {}).items()}
    return {name: answer for name, answer in answers.items() if answer is not None}


def _positions(q: Question) -> np.ndarray:
    S, T = len(q.inputs["kv.k"]), len(q.inputs["attn.q_rope"])
    return np.asarray(q.inputs.get("positions", np.arange(S - T, S)))


def newest_key_missing(q: Question):
    """R5: pos keys are read where pos + 1 are there."""
    positions = _positions(q) - 1
    if positions.max() < 0:
        return None
    answer = np.array(q.ask(positions=np.maximum(positions, 0)))
    answer[positions < 0] = np.nan
    return answer


def _other_layer(q: Question, layer: int):
    slabs = {name: q.others.get((layer, name)) for name in ("kv.k", "kv.v") if name in q.inputs}
    if layer == q.layer or any(slab is None for slab in slabs.values()):
        return None
    return q.evaluate(q.oracle, q.site, q.layer, q.inputs | slabs)


def kv_base_of_layer_0(q: Question):
    """R7: the KV base lacks its layer offset."""
    return _other_layer(q, 0)


def kv_base_of_previous_layer(q: Question):
    """The KV base of the layer before."""
    return _other_layer(q, q.layer - 1)


def last_64_keys_only(q: Question):
    """R8: only the newest keys are summed."""
    k, start = q.inputs["kv.k"], len(q.inputs["kv.k"]) - WINDOW
    if start <= 0 or len(q.inputs["attn.q_rope"]) != 1:
        return None
    slabs = {name: q.inputs[name][start:] for name in ("kv.k", "kv.v") if name in q.inputs}
    answer = q.evaluate(q.oracle, q.site, q.layer, _without_positions(q.inputs) | slabs)
    if q.site == "attn.out":
        return answer
    fill = -np.inf if q.site == "attn.scores" else 0.0
    return np.concatenate([np.full((*answer.shape[:2], len(k) - WINDOW), fill), answer], axis=-1)


def chunk_ignores_the_cache(q: Question):
    """L13: the queries see the keys of their own chunk only."""
    T, S = len(q.inputs["attn.q_rope"]), len(q.inputs["kv.k"])
    if T == S or q.site != "attn.out":
        return None
    slabs = {name: q.inputs[name][S - T :] for name in ("kv.k", "kv.v")}
    return q.evaluate(q.oracle, q.site, q.layer, _without_positions(q.inputs) | slabs)


def _without_positions(inputs: Tensors) -> Tensors:
    return {name: value for name, value in inputs.items() if name != "positions"}


def kv_head_is_n_mod_k(q: Question):
    """G1: query head n reads kv head n % K where it is n / G."""
    heads, kv_heads = q.oracle.config.heads, q.oracle.config.kv_heads
    groups = heads // kv_heads
    if kv_heads == 1 or groups == 1:
        return None
    order = np.argsort(np.arange(heads) % kv_heads, kind="stable")
    answer = q.ask(attn__q_rope=q.inputs["attn.q_rope"][:, order])
    return answer[:, np.argsort(order)]


def keys_read_one_slot_early(q: Question):
    """K is read at slot - 1; V where it is."""
    return q.ask(kv__k=np.concatenate([q.inputs["kv.k"][:1], q.inputs["kv.k"][:-1]]))


def values_read_one_slot_early(q: Question):
    """V is read at slot - 1; K where it is."""
    return q.ask(kv__v=np.concatenate([q.inputs["kv.v"][:1], q.inputs["kv.v"][:-1]]))


def keys_and_values_swapped(q: Question):
    """Scores from V, and K summed."""
    return q.ask(kv__k=q.inputs["kv.v"], kv__v=q.inputs["kv.k"])


def scale_is_1_over_h(q: Question):
    """Scores divided by H where it is its root."""
    factor = q.oracle.config.head_dim**-0.5
    return q.ask(attn__q_rope=np.asarray(q.inputs["attn.q_rope"], np.float64) * factor)


def scale_missing(q: Question):
    """Scores without 1/sqrt(H)."""
    factor = q.oracle.config.head_dim**0.5
    return q.ask(attn__q_rope=np.asarray(q.inputs["attn.q_rope"], np.float64) * factor)


def causal_mask_missing(q: Question):
    """Every query sees the whole slab."""
    last = len(q.inputs["kv.k"]) - 1
    positions = _positions(q)
    return None if positions.min() == last else q.ask(positions=np.full_like(positions, last))


def fp16_accumulation(q: Question):
    """G3: sums kept in half precision, one term after the other."""
    half = {"score": "float16", "softmax": "float16", "pv": "float16", "order": "sequential"}
    return q.under(replace(Policy.fp64(), name="fp16 accumulation", **half)).astype(np.float64)


def rotated_in_halves(q: Question):
    """L6: pairs (i, i + H/2) are rotated where GGUF's rows make them (2i, 2i + 1)."""
    name = LAYER_OP[q.site].inputs[0]
    x = np.asarray(q.inputs[name])
    H = x.shape[-1]
    paired = np.stack([x[..., : H // 2], x[..., H // 2 :]], axis=-1).reshape(x.shape)
    answer = q.evaluate(q.oracle, q.site, q.layer, q.inputs | {name: paired})
    return np.concatenate([answer[..., 0::2], answer[..., 1::2]], axis=-1)


def _position_off(offset: int) -> Hypothesis:
    def hypothesis(q: Question):
        return q.ask(positions=np.asarray(q.inputs["positions"]) + offset)

    hypothesis.__doc__ = f"G2: the rotation of position + ({offset})."
    return hypothesis


def not_rotated(q: Question):
    """The rotation is left out."""
    return q.ask(positions=np.zeros_like(q.inputs["positions"]))


def rope_base_10000(q: Question):
    """The default base in place of the model's."""
    if q.oracle.config.rope_base == 10000.0:
        return None
    config = replace(q.oracle.config, rope_base=10000.0)
    oracle = Oracle(q.oracle.file, config, q.oracle.weights, q.oracle.policy)
    return q.evaluate(oracle, q.site, q.layer, q.inputs)


def weight_read_transposed(q: Question):
    """L4: the file's `ne` misread, the same bytes taken as [in, out]."""
    op = LAYER_OP[q.site]
    x = np.asarray(q.inputs[op.inputs[0]], np.float64)
    weight = np.asarray(q.oracle.weights.load(op.weights[0], q.layer), np.float64)
    x_TX = x.reshape(len(x), -1)
    return (x_TX @ weight.reshape(x_TX.shape[1], -1)).reshape(len(x), *_output_shape(q, weight))


def _output_shape(q: Question, weight: np.ndarray) -> tuple[int, ...]:
    inner = np.asarray(q.inputs[LAYER_OP[q.site].inputs[0]]).ndim - 1
    return weight.shape[: weight.ndim - inner]


def nibbles_swapped(q: Question):
    """L2: the low and the high halves of the quants' bytes exchanged."""
    name = LAYER_OP[q.site].weights[0]
    tensor = q.oracle.weights.tensor_name(name, q.layer)
    dtype = q.oracle.file.info(tensor).dtype
    start = QUANT_BYTES.get(dtype.name)
    if start is None or dtype not in FORMATS:
        return None
    weight = q.oracle.weights.decode_changed(name, q.layer, lambda raw: _swap(raw, *start))
    x = np.asarray(q.inputs[LAYER_OP[q.site].inputs[0]], np.float64)
    answer = x.reshape(len(x), -1) @ np.asarray(weight, np.float64).reshape(-1, x[0].size).T
    return answer.reshape(len(x), *_output_shape(q, weight))


QUANT_BYTES = {"Q4_K": (16, 144), "Q5_K": (48, 176), "Q6_K": (0, 128), "Q4_0": (2, 18)}
"""Where the bytes of two nibbles lie in a block."""


def _swap(raw: np.ndarray, start: int, stop: int) -> np.ndarray:
    swapped = raw.copy()
    quants = raw[:, start:stop]
    swapped[:, start:stop] = (quants >> 4) | (quants << 4)
    return swapped


def tile_stored_transposed(q: Question):
    """R9: each whole 16x16 tile of the result [T, outputs] is stored transposed."""
    ref = q.evaluate(q.oracle, q.site, q.layer, q.inputs)
    flat = ref.reshape(len(ref), -1).copy()
    T, E = (size // TILE * TILE for size in flat.shape)
    if T == 0 or E == 0:
        return None
    tiles = flat[:T, :E].reshape(T // TILE, TILE, E // TILE, TILE)
    flat[:T, :E] = tiles.transpose(0, 3, 2, 1).reshape(T, E)
    return flat.reshape(ref.shape)


def read_column_major(q: Question):
    """R2: element (token, d) taken at d * V + token."""
    table = np.asarray(q.oracle.weights.load("embed_VD"), np.float64)
    V, D = table.shape
    ids = np.asarray(q.inputs["token_ids"])
    return table.reshape(-1)[np.arange(D)[None, :] * V + ids[:, None]]


def slot_of_the_token_before(q: Question):
    """R3: row t holds the result of token t - 1."""
    ref = np.asarray(q.evaluate(q.oracle, q.site, q.layer, q.inputs))
    return None if len(ref) < 2 else np.concatenate([np.full_like(ref[:1], np.nan), ref[:-1]])


def _cached_from(q: Question, source: str):
    """The cache fed from another tensor of its layer."""
    tensor = q.others.get((q.layer, source))
    return None if tensor is None else q.ask(**{INPUTS[q.site][0].replace(".", "__"): tensor})


def cached_before_the_rotation(q: Question):
    """K is kept as it was projected."""
    return _cached_from(q, "attn.k")


def cached_for_each_other(q: Question):
    """K's cache gets v, V's cache the rotated k."""
    return _cached_from(q, "attn.v" if q.site == "kv.k" else "attn.k_rope")


def queries_not_rotated(q: Question):
    """Scores of q as it was projected."""
    tensor = q.others.get((q.layer, "attn.q"))
    return None if tensor is None else q.ask(attn__q_rope=tensor)


def gate_and_up_exchanged(q: Question):
    """silu taken of up."""
    return q.ask(ffn__gate=q.inputs["ffn.up"], ffn__up=q.inputs["ffn.gate"])


def residual_missing(q: Question):
    """The branch alone, without what it is added to."""
    base = INPUTS[q.site][0]
    return q.evaluate(q.oracle, q.site, q.layer, q.inputs | {base: 0 * q.inputs[base]})


def residual_doubled(q: Question):
    """What the branch is added to counts twice."""
    base = INPUTS[q.site][0]
    return q.ask(**{base.replace(".", "__"): 2 * np.asarray(q.inputs[base], np.float64)})


def branch_doubled(q: Question):
    """The branch counts twice."""
    branch = INPUTS[q.site][1]
    return q.ask(**{branch.replace(".", "__"): 2 * np.asarray(q.inputs[branch], np.float64)})


def sum_in_place_of_mean(q: Question):
    """The norm divides by the root of the sum of squares, epsilon added to that."""
    base = INPUTS[q.site][0]
    root = np.shape(q.inputs[base])[-1] ** 0.5
    x = root * np.asarray(q.inputs[base], np.float64)
    return q.ask(**{base.replace(".", "__"): x}) / root


def up_missing(q: Question):
    """silu(gate) without its factor."""
    return q.ask(ffn__up=np.ones_like(np.asarray(q.inputs["ffn.up"], np.float64)))


def scale_weight_missing(q: Question):
    """The norm without its weight."""
    name = "final_norm_D" if q.layer == MODEL_LAYER else LAYER_OP[q.site].weights[0]
    scale = np.asarray(q.oracle.weights.load(name, q.layer), np.float64)
    ref = q.evaluate(q.oracle, q.site, q.layer, q.inputs)
    return np.divide(ref, scale, out=np.zeros_like(ref), where=scale != 0)


def _named(*hypotheses: Hypothesis) -> dict[str, Hypothesis]:
    return {hypothesis.__name__: hypothesis for hypothesis in hypotheses}


_SCORES = _named(
    newest_key_missing,
    kv_base_of_layer_0,
    kv_base_of_previous_layer,
    last_64_keys_only,
    kv_head_is_n_mod_k,
    keys_read_one_slot_early,
    queries_not_rotated,
    scale_missing,
    scale_is_1_over_h,
    causal_mask_missing,
    fp16_accumulation,
)
_ROTATED = _named(rotated_in_halves, not_rotated, rope_base_10000) | {
    "position_plus_one": _position_off(1),
    "position_minus_one": _position_off(-1),
}
_PROJECTED = _named(
    weight_read_transposed, nibbles_swapped, tile_stored_transposed, slot_of_the_token_before
)
_NORMED = _named(scale_weight_missing, sum_in_place_of_mean, slot_of_the_token_before)
_SUMMED = _named(residual_missing, residual_doubled, branch_doubled)

HYPOTHESES: dict[str, dict[str, Hypothesis]] = {
    "embed": _named(read_column_major, slot_of_the_token_before),
    "attn.norm": _NORMED,
    "attn.q_rope": _ROTATED,
    "attn.k_rope": _ROTATED,
    "kv.k": _named(slot_of_the_token_before, cached_before_the_rotation, cached_for_each_other),
    "kv.v": _named(slot_of_the_token_before, cached_for_each_other),
    "attn.scores": _SCORES,
    "attn.probs": _SCORES,
    "attn.out": _SCORES
    | _named(values_read_one_slot_early, keys_and_values_swapped, chunk_ignores_the_cache),
    "resid.mid": _SUMMED,
    "ffn.norm": _NORMED,
    "ffn.act": _named(gate_and_up_exchanged, up_missing),
    "resid.out": _SUMMED,
    "final.norm": _NORMED,
    "logits": _named(slot_of_the_token_before),
    **dict.fromkeys(
        ("attn.q", "attn.k", "attn.v", "attn.proj", "ffn.gate", "ffn.up", "ffn.down"), _PROJECTED
    ),
}

DIRECT = frozenset({"weight_read_transposed", "nibbles_swapped", "read_column_major"})
"""Those that compute their answer by themselves, and not through Question.evaluate."""

SHOWS = {
    "kv_base_of_layer_0": "where layer 0 is judged too, from layer 2 on",
    "kv_base_of_previous_layer": "where the layer before is judged too, from layer 2 on",
    "newest_key_missing": "from the second token on",
    "last_64_keys_only": f"beyond {WINDOW} keys",
    "chunk_ignores_the_cache": "in the second chunk of a prefill",
    "keys_read_one_slot_early": "from the third token on",
    "values_read_one_slot_early": "from the second token on",
    "causal_mask_missing": "in a prefill of several tokens",
    "tile_stored_transposed": f"from {TILE} tokens on",
    "slot_of_the_token_before": "from the second token on",
    "position_plus_one": "at two positions or more",
    "position_minus_one": "at two positions or more",
    "not_rotated": "at positions above 0",
    "rotated_in_halves": "at positions above 0",
}
"""The input on which a mistake differs from others, where captured inputs may not do."""
