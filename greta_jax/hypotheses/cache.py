"""Mistakes of the cache. `got` is the slab at the end, a slot a row: where no row is, NaN."""

import numpy as np

from greta_jax.graph import INPUTS
from greta_jax.hypotheses.question import Hypothesis, Question, named
from greta_jax.precision import stored

PAGES = (16, 64, 256)


def _cached_from(q: Question, source: str):
    """The cache fed from another tensor of its layer."""
    tensor = q.others.get((q.layer, source))
    return None if tensor is None else _cached(q, tensor)


def _cached(q: Question, tensor) -> np.ndarray:
    return q.evaluate(q.oracle, q.site, q.layer, q.inputs | {INPUTS[q.site][0]: tensor})


def cached_before_the_rotation(q: Question):
    """K is kept as it was projected."""
    return _cached_from(q, "attn.k")


def cached_for_each_other(q: Question):
    """K's cache gets v, V's cache the rotated k."""
    return _cached_from(q, "attn.v" if q.site == "kv.k" else "attn.k_rope")


def _rounded_to(dtype: str) -> Hypothesis:
    def hypothesis(q: Question):
        tensor = np.asarray(q.inputs[INPUTS[q.site][0]], np.float64)
        with np.errstate(over="ignore"):  # what does not fit is inf, as in the cache
            return _cached(q, np.asarray(stored(tensor, dtype), np.float64))

    hypothesis.__name__ = f"stored_in_{dtype}"
    hypothesis.__doc__ = f"A cache that is declared wider holds {dtype}."
    return hypothesis


def stored_at_half(q: Question):
    """fp8 stored as FN and read as FNUZ: the bias is one more, and every number half as large."""
    return _cached(q, 0.5 * np.asarray(q.inputs[INPUTS[q.site][0]], np.float64))


def stored_at_another_scale(q: Question):
    """L5: the numbers of a head times a power of two: its scale is left out, or is another's."""
    if q.got is None or not np.isfinite(q.got).all():
        return None
    largest_K = np.abs(q.got).max(axis=(0, 2)), np.abs(q.right()).max(axis=(0, 2))
    if not all(largest.all() for largest in largest_K):
        return None
    factor_K = np.exp2(np.rint(np.log2(largest_K[0] / largest_K[1])))
    if set(factor_K) <= {0.5, 1.0}:  # or it is stored_at_half
        return None
    tensor_TKH = np.asarray(q.inputs[INPUTS[q.site][0]], np.float64)
    return _cached(q, factor_K[:, None] * tensor_TKH)


def kv_heads_stored_reversed(q: Question):
    """Head K - 1 - k is stored for k."""
    answer = np.asarray(q.ask())
    return answer[:, ::-1] if answer.shape[1] > 1 else None


def _rows(q: Question, row_of) -> np.ndarray:
    """Slot s of head k holds the row of token `row_of(s, k)`, NaN where there is none."""
    rows = np.asarray(q.ask())
    S, K = rows.shape[:2]
    slot, head = np.meshgrid(np.arange(S), np.arange(K), indexing="ij")
    token = row_of(slot, head)
    answer = rows[np.clip(token, 0, S - 1), head]
    answer[(token < 0) | (token >= S)] = np.nan
    return answer


def head_stride_short_by_a_slot(q: Question):
    """R16: the writer's heads lie a slot closer than the reader's: head k is k slots early."""
    return _rows(q, lambda slot, head: slot + head) if len(q.ask()) > 1 else None


def slot_of_the_token_before(q: Question):
    """Rows are written a slot late."""
    return _rows(q, lambda slot, head: slot - 1) if len(q.ask()) > 1 else None


def _stale_page(page: int) -> Hypothesis:
    def hypothesis(q: Question):
        tokens = len(q.ask())
        if tokens <= page:
            return None

        def newest(slot, head):
            # The last token that went to this slot of page 0; later pages are never written.
            last = slot + (tokens - 1 - slot) // page * page
            return np.where(slot < page, last, -1)

        return _rows(q, newest)

    hypothesis.__name__ = f"pages_of_{page}_all_on_the_first"
    hypothesis.__doc__ = "A stale block table: every page is mapped to page 0."
    return hypothesis


CACHED = named(
    slot_of_the_token_before,
    cached_for_each_other,
    stored_at_half,
    stored_at_another_scale,
    kv_heads_stored_reversed,
    head_stride_short_by_a_slot,
    *map(_stale_page, PAGES),
    *map(_rounded_to, ("float16", "bfloat16")),
)
CACHED_K = CACHED | named(cached_before_the_rotation)
SHOWS = {
    "slot_of_the_token_before": "from the second token on",
    "head_stride_short_by_a_slot": "from the second token on",
    **{f"pages_of_{page}_all_on_the_first": f"beyond {page} tokens" for page in PAGES},
}
