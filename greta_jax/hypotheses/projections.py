"""Mistakes of products with weights, and of the weights themselves."""

import numpy as np
from gguf import GGMLQuantizationType

from greta_jax.gguf.blocks import FORMATS
from greta_jax.graph import LAYER_OP
from greta_jax.hypotheses.question import Hypothesis, Question, named
from greta_jax.taps import MODEL_LAYER

TILE = 16
"""Edge of the matrix-core tile that R4 and R9 transposed."""
NIBBLES = {"Q4_K": (16, 144), "Q5_K": (48, 176), "Q6_K": (0, 128), "Q4_0": (2, 18)}
"""Where the bytes of two nibbles lie in a block."""


def slot_of_the_token_before(q: Question):
    """R3: row t holds the result of token t - 1."""
    ref = np.asarray(q.ask())
    return None if len(ref) < 2 else np.concatenate([np.full_like(ref[:1], np.nan), ref[:-1]])


def tile_stored_transposed(q: Question):
    """R9: each whole 16x16 tile of the result [T, outputs] is stored transposed."""
    ref = np.asarray(q.ask())
    flat = ref.reshape(len(ref), -1).copy()
    T, E = (size // TILE * TILE for size in (q.in_batch(len(flat)).sum(), flat.shape[1]))
    if T == 0 or E == 0:
        return None
    tiles = flat[:T, :E].reshape(T // TILE, TILE, E // TILE, TILE)
    flat[:T, :E] = tiles.transpose(0, 3, 2, 1).reshape(T, E)
    return flat.reshape(ref.shape)


def fragments_loaded_transposed(q: Question):
    """R4: in every product of 16x16 fragments, both are transposed; whole tiles of tokens."""
    op = LAYER_OP[q.site]
    x = np.asarray(q.inputs[op.inputs[0]], np.float64)
    x_TX = x.reshape(len(x), -1)
    T, X = (size // TILE * TILE for size in (q.in_batch(len(x)).sum(), x_TX.shape[1]))
    weight = np.asarray(q.oracle.weights.load(op.weights[0], q.layer), np.float64)
    weight_EX = weight.reshape(-1, x_TX.shape[1])
    E = len(weight_EX) // TILE * TILE
    if T == 0 or X != x_TX.shape[1] or E != len(weight_EX):
        return None
    answer = np.array(q.ask())
    flat = answer.reshape(len(x), -1)
    # Fragments of 16 columns each: [block, row, column].
    x_BTK = x_TX[:T].reshape(T // TILE, TILE, X // TILE, TILE)
    weight_BEK = weight_EX.reshape(E // TILE, TILE, X // TILE, TILE)
    if q.bounding:
        x_BTK, weight_BEK = np.abs(x_BTK), np.abs(weight_BEK)
    # sum over blocks c and k of W[e0 + k, 16 c + e] x[t0 + k, 16 c + t]
    product = np.einsum("tkci,ekcj->tiej", x_BTK, weight_BEK).reshape(T, E)
    if q.bounding:
        right = np.abs(x_TX[:T]) @ np.abs(weight_EX).T
        product = product * np.max(flat[:T] / np.maximum(right, np.finfo(float).tiny))
    flat[:T] = product
    return flat.reshape(answer.shape)


def weight_read_transposed(q: Question):
    """L4: the file's `ne` misread, the same numbers taken as [in, out]."""
    weights, name = q.oracle.weights, q.weight_name()
    turned = []
    for numbers in (weights.load(name, q.layer), weights.magnitude(name, q.layer)[0]):
        columns = weights.file.info(weights.tensor_name(name, q.layer)).shape[-1]
        flat = np.asarray(numbers, np.float64).reshape(-1, columns)
        turned.append(flat.reshape(columns, -1).T)
    return q.with_weight(*turned)


def _decoded(name: str, meaning: str, change) -> Hypothesis:
    """The weight decoded after `change` of its blocks' bytes, of a dtype; None: not of that."""

    def hypothesis(q: Question):
        weights, weight = q.oracle.weights, q.weight_name()
        layer = MODEL_LAYER if q.site in ("embed", "logits") else q.layer
        dtype = weights.file.info(weights.tensor_name(weight, layer)).dtype
        if dtype not in FORMATS or change(np.zeros((1, 256), np.uint8), dtype.name) is None:
            return None
        value = weights.decode_changed(weight, layer, lambda raw: change(raw.copy(), dtype.name))
        value = np.asarray(value, np.float64)
        size, _ = weights.magnitude(weight, layer)
        return q.with_weight(value, np.maximum(np.asarray(size), np.abs(value)))

    hypothesis.__name__, hypothesis.__doc__ = name, meaning
    return hypothesis


def _swap_nibbles(raw: np.ndarray, dtype: str):
    if dtype not in NIBBLES:
        return None
    start, stop = NIBBLES[dtype]
    quants = raw[:, start:stop]
    raw[:, start:stop] = (quants >> 4) | (quants << 4)
    return raw


def _negate_minima(raw: np.ndarray, dtype: str):
    if dtype not in ("Q4_K", "Q5_K"):
        return None
    raw[:, 3] ^= 0x80
    return raw


def _misplace_scale_tops(raw: np.ndarray, dtype: str):
    """Sub-blocks 4 to 7: the two top bits go onto bits 2 and 3 of the four low ones."""
    if dtype not in ("Q4_K", "Q5_K"):
        return None
    raw[:, 12:16] |= (raw[:, 4:8] >> 6) << 2
    raw[:, 4:8] &= 0x3F
    return raw


def _swap_planes(raw: np.ndarray, dtype: str):
    """Bit pairs of Q6_K: those of elements 0 to 31 and 32 to 63 of a half exchanged."""
    if dtype != GGMLQuantizationType.Q6_K.name:
        return None
    tops = raw[:, 128:192]
    raw[:, 128:192] = ((tops & 0x33) << 2) | ((tops >> 2) & 0x33)
    return raw


def input_not_normalised(q: Question):
    """The last norm is skipped."""
    tensor = q.others.get((q.oracle.config.layers - 1, "resid.out"))
    return None if tensor is None else q.ask(final__norm=tensor)


def _of_the_embedding(q: Question):
    """Logits from the embedding of a model that has an output matrix."""
    return q.with_weight_of("embed_VD", MODEL_LAYER)


_of_the_embedding.__name__ = "weight_of_the_embedding"


def read_column_major(q: Question):
    """R2: element (token, d) taken at d * V + token."""
    weights = q.oracle.weights
    numbers = (weights.load("embed_VD"), weights.magnitude("embed_VD")[0])
    V, D = weights.shape("embed_VD")
    turned = (np.asarray(x, np.float64).reshape(D, V).T for x in numbers)
    return q.with_weight(*turned)


def rows_of_other_tokens(q: Question):
    """The engine was fed other tokens than its labels say: the nearest of this run's."""
    if q.got is None or not np.isfinite(q.got).all():
        return None
    ids_T = np.asarray(q.inputs["token_ids"])
    known = np.unique(ids_T)
    rows = np.asarray(q.oracle.weights.embed_rows(known), np.float64)
    fed = [known[np.abs(rows - row).max(axis=1).argmin()] for row in q.got]
    return None if np.array_equal(fed, ids_T) else q.ask(token_ids=np.array(fed))


def _of_another_layer(name: str, layer_of) -> Hypothesis:
    def hypothesis(q: Question):
        layer = layer_of(q.layer)
        if q.layer == MODEL_LAYER or layer == q.layer or not 0 <= layer < q.oracle.config.layers:
            return None
        return q.with_weight_of(q.weight_name(), layer)

    hypothesis.__name__, hypothesis.__doc__ = name, "Of this op, but of another layer."
    return hypothesis


def _of_another_op(name: str) -> Hypothesis:
    def hypothesis(q: Question):
        if name == q.weight_name():
            return None
        last = q.oracle.config.layers - 1
        own = last if q.layer == MODEL_LAYER else q.layer
        return q.with_weight_of(name, MODEL_LAYER if name == "final_norm_D" else own)

    hypothesis.__name__ = f"weight_of_{name.rsplit('_', 1)[0]}"
    hypothesis.__doc__ = "Of this layer, but of another op."
    return hypothesis


_BY_LAYER = (
    _of_another_layer("weight_of_layer_0", lambda layer: 0),
    _of_another_layer("weight_of_the_layer_before", lambda layer: layer - 1),
    _of_another_layer("weight_of_the_next_layer", lambda layer: layer + 1),
)
MATRICES = ("q_NHD", "k_KHD", "v_KHD", "proj_DNH", "gate_FD", "up_FD", "down_DF")
NORMS = ("attn_norm_D", "ffn_norm_D", "final_norm_D")
_ENCODED = named(
    _decoded("nibbles_swapped", "L2: low and high halves of the quants exchanged.", _swap_nibbles),
    _decoded("minima_added", "The sign of Q4_K's minima.", _negate_minima),
    _decoded("tops_of_late_scales_misplaced", "L2: 6-bit scales.", _misplace_scale_tops),
    _decoded("planes_of_tops_swapped", "L3: bit planes of Q6_K.", _swap_planes),
)
PROJECTED = _ENCODED | named(
    weight_read_transposed,
    tile_stored_transposed,
    fragments_loaded_transposed,
    slot_of_the_token_before,
    *_BY_LAYER,
    *map(_of_another_op, MATRICES),
)
NORM_WEIGHTS = named(*_BY_LAYER, *map(_of_another_op, NORMS), slot_of_the_token_before)
EMBEDDED = _ENCODED | named(read_column_major, rows_of_other_tokens, slot_of_the_token_before)
LOGITS = _ENCODED | named(slot_of_the_token_before, input_not_normalised, _of_the_embedding)
SHOWS = {
    "tile_stored_transposed": f"from {TILE} tokens on",
    "fragments_loaded_transposed": f"from {TILE} tokens on",
    "slot_of_the_token_before": "from the second token on",
    "weight_of_layer_0": "from layer 2 on",
    "weight_of_the_layer_before": "from layer 2 on",
}
