"""Comparisons that could not have failed, and are therefore not passes."""

from collections.abc import Sequence

import numpy as np

from experiments.align import sites


def _flat(rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(row) for row in rows])


def _nothing_distinct(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    if values.size > 1 and not (finite.size and finite.min() < finite.max()):
        return "all zero" if not np.any(finite) else "one constant"
    return ""


def _repeats(rows: Sequence[np.ndarray]) -> str:
    """An array that shows some of its elements several times, as a broadcast does."""
    for row in rows:
        shown = [step for step, size in zip(row.strides, row.shape, strict=True) if size > 1]
        if 0 in shown:
            return "the same elements again and again"
    return ""


def _distinct_rows(rows: Sequence[np.ndarray]) -> int:
    return len({np.ascontiguousarray(row).tobytes() for row in rows})


def why_vacuous(
    site: str, ref: Sequence[np.ndarray], got: Sequence[np.ndarray], distinct: int = 1
) -> str:
    """Why comparing these tensors of all tokens says nothing; empty if it says something.

    `distinct`: how many different tokens they claim to be of. A reduction in fewer bits than the
    reference does not round every element correctly by chance: bits that are those of the rounded
    reference were not computed separately. Of a cache, the slots at the end are looked at.
    """
    if sites.SHAPES[site].startswith("S"):
        ref, got = ref[-1], got[-1]
    if any(np.shares_memory(left, right) for left, right in zip(ref, got, strict=True)):
        return "the same buffer on both sides"
    left, right = _flat(ref), _flat(got)
    for side, values in (("reference", left), ("engine", right)):
        if why := _nothing_distinct(values):
            return f"the {side} holds {why}: no element could differ"
    for side, rows in (("reference", ref), ("engine", got)):
        if why := _repeats(rows):
            return f"the {side} holds {why}"
        if (found := _distinct_rows(rows)) < distinct:
            return f"the {side} holds {found} distinct rows, of {distinct} distinct tokens"
    if site not in sites.ROUNDS_ONCE and np.array_equal(left.astype(right.dtype), right):
        return f"bit for bit the rounded reference ({right.dtype.name}), which arithmetic cannot be"
    return ""
