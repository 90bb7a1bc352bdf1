"""Comparisons that could not have failed, and are therefore not passes."""

from collections.abc import Sequence

import numpy as np

from experiments.align import sites


def _flat(rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(row) for row in rows])


def _nothing_distinct(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    if values.size > 1 and np.unique(finite).size < 2:
        return "all zero" if not np.any(finite) else "one constant"
    return ""


def why_vacuous(site: str, ref: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> str:
    """Why comparing these tensors of all tokens says nothing; empty if it says something.

    A reduction in fewer bits than the reference does not round every element correctly by chance:
    bits that are those of the rounded reference were not computed separately.
    """
    if any(np.shares_memory(left, right) for left, right in zip(ref, got, strict=True)):
        return "the same buffer on both sides"
    left, right = _flat(ref), _flat(got)
    for side, values in (("reference", left), ("engine", right)):
        if why := _nothing_distinct(values):
            return f"the {side} holds {why}: no element could differ"
    if site not in sites.ROUNDS_ONCE and np.array_equal(left.astype(right.dtype), right):
        return f"bit for bit the rounded reference ({right.dtype.name}), which arithmetic cannot be"
    return ""
