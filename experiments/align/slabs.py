"""Slabs of a cache that only grow: what is said of each follows from the row that it grew by.

A step must keep the slots of earlier ones bit for bit. Where it does, their local error is nothing,
whatever the slab before was wrong by is inherited, and the new row is all that is left to measure.
All slabs together grow with the square of the tokens; their rows do not.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from experiments.align.metrics import Sizes
from experiments.align.numbers import Broken, Numbers, concatenated


class GrowingSlabs(Sequence):
    """Token t's slab: `earlier(t)`, its first t slots, and then its row of `new_TKH`.

    Made when asked for.
    """

    def __init__(self, new_TKH: np.ndarray, earlier: Callable[[int], np.ndarray]):
        self.new_TKH, self._earlier = new_TKH, earlier

    def __len__(self) -> int:
        return len(self.new_TKH)

    def __getitem__(self, token: int) -> np.ndarray:
        if not 0 <= token < len(self):
            raise IndexError(token)
        earlier = self._earlier(token).astype(np.float64)
        return np.concatenate([earlier, self.new_TKH[token : token + 1]])


def grew(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether `after` holds what `before` does, bit for bit, and more."""
    kept, bits = after[: len(before)], f"u{before.itemsize}"
    same_memory = kept.__array_interface__ == before.__array_interface__
    return same_memory or np.array_equal(kept.view(bits), before.view(bits))


def append_only(slabs: Sequence[np.ndarray]) -> bool:
    """Whether no step changed a slot of an earlier one: then one slab serves all tokens."""
    return all(grew(slab_SKH, slabs[-1]) for slab_SKH in slabs)


def of_grown(before: Numbers, rows: Numbers) -> Numbers:
    """The numbers of slabs that each grew by one of `rows`, after the last slab of `before`.

    What earlier slots contribute: to the total error, the total of the slab before; to what was
    propagated, the same; to the sizes of what is held, what was held; to anything else, nothing.
    """
    last, held = (_tokens(sizes, slice(-1, None)) for sizes in (before.total, before.held))
    row_size = int(rows.total.count_T[0])
    slots_T = int(last.count_T[0]) // row_size + np.arange(len(rows.total.sum_T))
    shift = (slots_T, row_size)
    total_before, total = _accumulated(last, rows.total, shift)
    held_before, held = _accumulated(held, rows.held, shift)
    errors = {name: getattr(rows, name) for name in ("local", "floor", "ratio", "ablation")}
    broken = Broken(rows.broken.any_T, _shifted(rows.broken.at_TX, slots_T), rows.broken.value_T)
    return replace(
        rows,
        total=total,
        propagated=_beside(total_before, rows.propagated, shift),
        held=held,
        right=_beside(held_before, rows.right, shift),
        broken=broken,
        **{name: _beside(None, sizes, shift) for name, sizes in errors.items() if sizes},
    )


def _accumulated(first: Sizes, rows: Sizes, shift) -> tuple[Sizes, Sizes]:
    """Of every slab before a row was added, and after."""
    slots_T, _ = shift
    one = concatenated([first, replace(rows, at_TX=_shifted(rows.at_TX, slots_T))])
    max_T = np.maximum.accumulate(one.max_T)
    rises_T = np.concatenate([[True], one.max_T[1:] > max_T[:-1]])
    latest_T = np.maximum.accumulate(np.where(rises_T, np.arange(len(max_T)), 0))
    sums = {n: np.cumsum(getattr(one, n)) for n in ("sum_T", "count_T", "squares_T", "finite_T")}
    grown = Sizes(max_T=max_T, at_TX=one.at_TX[latest_T], **sums)
    return _tokens(grown, slice(-1)), _tokens(grown, slice(1, None))


def _beside(before: Sizes | None, rows: Sizes, shift) -> Sizes:
    """A row beside the slots before it; None: slots in which nothing is wrong."""
    slots_T, row_size = shift
    kept_T = slots_T * row_size
    if before is None:
        nothing_T = np.zeros(len(kept_T))
        at_TX = np.zeros_like(rows.at_TX)
        before = Sizes(nothing_T, kept_T, nothing_T, at_TX, nothing_T, kept_T)
    larger_T = rows.max_T > before.max_T
    at_TX = np.where(larger_T[:, None], _shifted(rows.at_TX, slots_T), before.at_TX)
    sums = {
        name: getattr(before, name) + getattr(rows, name)
        for name in ("sum_T", "count_T", "squares_T", "finite_T")
    }
    return Sizes(max_T=np.maximum(before.max_T, rows.max_T), at_TX=at_TX, **sums)


def _shifted(at_TX: np.ndarray, slots_T: np.ndarray) -> np.ndarray:
    """Indices within a row as those of the slab: the row is its last slot."""
    return np.concatenate([at_TX[:, :1] + slots_T[:, None], at_TX[:, 1:]], axis=1)


def _tokens(sizes: Sizes, chosen: slice) -> Sizes:
    return Sizes(*(getattr(sizes, name)[chosen] for name in Sizes.__dataclass_fields__))
