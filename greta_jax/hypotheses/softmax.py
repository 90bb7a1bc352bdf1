"""Mistakes of attention in its softmax: what is summed, rescaled, dropped or divided by.

Each says which weights w take the place of the probabilities: out = sum of w v. The splits are
those of flash decoding: tiles of 64 slots, chunks of 256.
"""

import numpy as np

from greta_jax.hypotheses.attention import positions_of, seeing_until
from greta_jax.hypotheses.question import Hypothesis, Question, named
from greta_jax.replay import replay

TILE, CHUNK = 64, 256
MATRIX_ROWS = 16


class _Softmax:
    """Scores, their exponentials and probabilities, TNS; dead slots count as nothing."""

    def __init__(self, q: Question):
        self.q = q
        self.inputs = {name: value for name, value in q.inputs.items() if name != "kv.v"}
        self.scores = np.asarray(replay(q.oracle, "attn.scores", q.layer, self.inputs))
        self.probs = np.asarray(replay(q.oracle, "attn.probs", q.layer, self.inputs))
        self.live = np.isfinite(self.scores)

    def tile_maximum(self, tile: int) -> np.ndarray:
        """For each slot, the largest score of its tile; -inf where the tile is empty."""
        S = self.scores.shape[-1]
        padded = np.pad(self.scores, ((0, 0), (0, 0), (0, -S % tile)), constant_values=-np.inf)
        tiles = padded.reshape(*padded.shape[:2], -1, tile).max(-1, keepdims=True)
        return np.broadcast_to(tiles, (*tiles.shape[:3], tile)).reshape(padded.shape)[..., :S]

    def weights(self, maximum: np.ndarray) -> np.ndarray:
        """exp(score - maximum)."""
        with np.errstate(invalid="ignore"):
            return np.where(self.live, np.exp(self.scores - maximum), 0)

    def maximum(self) -> np.ndarray:
        return self.scores.max(-1, keepdims=True)

    def valued(self, weight_TNS: np.ndarray, more_TNS=0.0) -> np.ndarray:
        """Sum of weights and values; its rounding, if that is asked for: a weight may be off by
        twice the largest relative error of a probability and by `more_TNS`, and the sum by that of
        the sum of ones.
        """
        q = self.q
        v_SKH = np.asarray(q.inputs["kv.v"], np.float64)
        if q.bounding:
            off = q.evaluate(q.oracle, "attn.probs", q.layer, self.inputs)
            with np.errstate(invalid="ignore", divide="ignore"):
                relative = np.where(self.live & (self.probs > 0), off / self.probs, 0)
            ones = q.ask(kv__v=np.ones_like(v_SKH)).max(-1)
            v_SKH = np.abs(v_SKH)
            off_TNS = (2 * relative.max(-1) + ones)[..., None] + more_TNS
            weight_TNS = np.abs(weight_TNS) * off_TNS
        T, N, S = weight_TNS.shape
        weight_TKGS = weight_TNS.reshape(T, v_SKH.shape[1], -1, S)
        return np.einsum("TKGS,SKH->TKGH", weight_TKGS, v_SKH).reshape(T, N, -1)

    def broken(self, answer_TNH: np.ndarray, where_TN: np.ndarray) -> np.ndarray:
        """The answer, in which some heads of some tokens are not finite: that is what infinity says
        of an element, as NaN says nothing."""
        return np.where(where_TN[..., None] & (not self.q.bounding), np.inf, answer_TNH)


def sum_not_divided_out(q: Question):
    """The sum of exp(score - maximum) is not divided by."""
    softmax = _Softmax(q)
    return softmax.valued(softmax.weights(softmax.maximum()))


def tail_unmasked(q: Question):
    """Dead slots of the newest tile repeat the newest key, and count in the sum but not in V."""
    softmax, positions = _Softmax(q), positions_of(q)
    dead_T = -(positions + 1) % TILE
    newest_TN = np.take_along_axis(softmax.probs, positions[:, None, None], axis=2)[..., 0]
    return softmax.valued(softmax.probs / (1 + dead_T[:, None] * newest_TN)[..., None])


def scores_rounded_to_fp16(q: Question):
    """Scores kept in half precision."""
    softmax = _Softmax(q)
    return _of_halves(softmax, 1.0)


def scores_in_fp16_before_the_scale(q: Question):
    """Products of q and k kept in half precision before they are scaled: beyond 65504, infinite.

    Of a scale that is a power of two, the same as after it as long as nothing overflows.
    """
    cfg, softmax = q.oracle.config.layer(q.layer), _Softmax(q)
    before = _to_fp16(softmax.scores / cfg.score_scale) * cfg.score_scale
    alike = np.array_equal(before, _to_fp16(softmax.scores))
    return None if alike or cfg.score_cap is not None else _of_halves(softmax, cfg.score_scale)


def _of_halves(softmax: "_Softmax", scale: float) -> np.ndarray:
    """Softmax of scores that were rounded to fp16 before `scale`. Where the score's own rounding
    decides which half it becomes, either may be: a score that moves by d moves a probability by at
    most exp(d + largest d)."""
    q, scores = softmax.q, softmax.scores / scale
    rounded = _to_fp16(scores) * scale
    largest = rounded.max(-1, keepdims=True)
    weights = np.where(softmax.live, np.exp(rounded - largest), 0)
    moved = np.zeros_like(weights)
    if q.bounding:
        off = np.asarray(q.evaluate(q.oracle, "attn.scores", q.layer, softmax.inputs)) / scale
        live = np.where(softmax.live & np.isfinite(rounded), scores, 0)
        apart = _to_fp16(live + off) - _to_fp16(live - off)
        moved = np.where(softmax.live, apart * scale, 0)
    more = np.expm1(moved + moved.max(-1, keepdims=True))
    answer = softmax.valued(weights / weights.sum(-1, keepdims=True), more)
    return softmax.broken(answer, ~np.isfinite(largest[..., 0]))


def maximum_not_subtracted(q: Question):
    """exp(score) in fp32 as it is: where one overflows or all underflow, nothing is finite; weights
    below the smallest normal number may be lost."""
    softmax, fp32 = _Softmax(q), np.finfo(np.float32)
    largest_TN, live_TN = softmax.maximum()[..., 0], softmax.live.sum(-1)
    high, normal = np.log(float(fp32.max)), np.log(float(fp32.tiny))
    broken_TN = (largest_TN > high) | (largest_TN < np.log(float(fp32.smallest_subnormal) / 2))
    if not broken_TN.any():
        return None
    lost_TNS = np.exp(np.minimum(normal - softmax.scores, 0))
    answer = softmax.valued(softmax.probs, np.where(softmax.live, lost_TNS, 0))
    answer = softmax.broken(answer, broken_TN)
    # In between, the sum may overflow or the hardware flush: whether, nobody says.
    certain_TN = (largest_TN + np.log(live_TN) < high) & (largest_TN > normal)
    answer[~broken_TN & ~certain_TN] = np.nan
    return answer


def _to_fp16(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float64)


def _merged_without_rescale(tile: int) -> Hypothesis:
    def hypothesis(q: Question):
        softmax = _Softmax(q)
        if softmax.scores.shape[-1] <= tile:
            return None
        weights = softmax.weights(softmax.tile_maximum(tile))
        return softmax.valued(weights / weights.sum(-1, keepdims=True))

    hypothesis.__name__ = f"splits_of_{tile}_merged_without_rescale"
    hypothesis.__doc__ = "Partial sums are added as if their maxima were equal."
    return hypothesis


def empty_splits_counted(q: Question):
    """A tile of the newest chunk without slots counts as one score of 0, with a value of 0."""
    softmax, positions = _Softmax(q), positions_of(q)
    empty_T = (CHUNK - 1 - positions % CHUNK) // TILE
    maximum = softmax.maximum()
    weights = softmax.weights(maximum)
    extra_TN1 = empty_T[:, None, None] * np.exp(-maximum)
    return softmax.valued(weights / (weights.sum(-1, keepdims=True) + extra_TN1))


def last_split_dropped(q: Question):
    """The slots after the last whole tile are not seen."""
    positions = positions_of(q)
    return seeing_until(q, (positions + 1) // TILE * TILE - 1)


def row_sum_read_as_fp16(q: Question):
    """Weights rounded to bfloat16 whose bits the sum reads as fp16: 0x3F80, 1, is then 1.875."""
    softmax = _Softmax(q)
    maximum = softmax.tile_maximum(TILE)
    weights = softmax.weights(maximum)
    bits = weights.astype(np.float32).view(np.uint32)
    half = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    misread = np.where(softmax.live, half.view(np.float16).astype(np.float64), 0)
    with np.errstate(invalid="ignore"):
        rescale = np.where(softmax.live, np.exp(maximum - softmax.maximum()), 0)
    total_TN1 = (misread * rescale).sum(-1, keepdims=True)
    return softmax.valued(softmax.weights(softmax.maximum()) / total_TN1)


def rows_of_the_product_permuted(q: Question):
    """Rows of C/D of a 16x16 product taken as quad + 4 r where they are 4 quad + r: a head gets
    the row of another; rows past the group are of queries of zero, which weigh all slots alike."""
    softmax = _Softmax(q)
    if softmax.scores.shape[-1] > TILE:
        return None
    weights = softmax.weights(softmax.maximum())
    T, N, S = weights.shape
    G = N // q.oracle.config.kv_heads
    if G > MATRIX_ROWS:
        return None
    rows_TKGS = weights.reshape(T, -1, G, S)
    zeros_TKGS = np.broadcast_to(softmax.live.reshape(T, -1, G, S)[:, :, :1], rows_TKGS.shape)
    rows = np.concatenate([rows_TKGS, *[zeros_TKGS[:, :, :1]] * (MATRIX_ROWS - G)], axis=2)
    row = np.arange(MATRIX_ROWS)
    rows = rows[:, :, 4 * (row % 4) + row // 4][:, :, :G].astype(np.float64)
    return softmax.valued(rows.reshape(T, N, S) / weights.sum(-1, keepdims=True))


SOFTMAX = named(
    sum_not_divided_out,
    tail_unmasked,
    scores_rounded_to_fp16,
    scores_in_fp16_before_the_scale,
    maximum_not_subtracted,
    _merged_without_rescale(TILE),
    _merged_without_rescale(CHUNK),
    empty_splits_counted,
    last_split_dropped,
    row_sum_read_as_fp16,
    rows_of_the_product_permuted,
)
SHOWS = {
    "sum_not_divided_out": "from the second token on",
    f"splits_of_{TILE}_merged_without_rescale": f"beyond {TILE} slots",
    f"splits_of_{CHUNK}_merged_without_rescale": f"beyond {CHUNK} slots",
    "last_split_dropped": f"beyond {TILE} slots",
    "scores_in_fp16_before_the_scale": "where a product of q and k is beyond 65504",
    "maximum_not_subtracted": "where a score is above 88.7, the log of the largest fp32",
}
