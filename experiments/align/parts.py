"""The tokens of one site in parts that are measured at once: those of one shape, growing slabs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from experiments.align import floors, numbers, sites, slabs
from experiments.align.numbers import Ablation, Case, Numbers, Storage
from experiments.align.slabs import GrowingSlabs
from experiments.align.split import Corner

Rows = Sequence[np.ndarray]
"""One array for each token."""
ELEMENTS = 2**17
"""Elements of one part, in fp64: what a core's cache holds several of."""


@dataclass(frozen=True)
class RoundingModel:
    """An op evaluated in the engine's declared precision, `rows`.

    `bound` holds for any order of summation; None where the floor's own bound covers `rows` too.
    """

    rows: Rows
    bound: Rows | None = None


@dataclass(frozen=True)
class Tensors:
    """What the verdicts on one site of one layer are made of, a row a token: numbers.Case."""

    ref: Rows
    got: Rows
    op64_ref: Rows
    op64_got: Rows
    floor: Mapping[str, Rows]
    closure: Rows
    corners: Mapping[Corner, Rows]
    declared: RoundingModel | None
    bits: Rows | None

    def case(self, take: Callable[[Rows], np.ndarray], stored: Storage) -> Case:
        """Some tokens: `take` makes one array of theirs."""
        declared = None
        if self.declared is not None:
            bound = self.declared.bound
            declared = Ablation(take(self.declared.rows), None if bound is None else take(bound))
        return Case(
            take(self.ref),
            take(self.got),
            take(self.op64_ref),
            take(self.op64_got),
            floors.Floor({source: take(rows) for source, rows in self.floor.items()}),
            take(self.closure),
            stored,
            {corner: take(rows) for corner, rows in self.corners.items()},
            declared,
            None if self.bits is None else take(self.bits),
        )

    def computed(self) -> list[Rows]:
        """All that is neither side's own."""
        found = [self.op64_ref, self.op64_got, *self.floor.values(), self.closure]
        if self.declared is not None:
            found += [self.declared.rows, self.declared.bound]
        return [rows for rows in (*found, *self.corners.values(), self.bits) if rows is not None]


def measured(
    tensors: Tensors, site: str, shape_at: Callable[[int], tuple[int, ...]], stored: Storage
) -> Iterator[tuple[range, Numbers | None]]:
    """Every token once, in order, with its numbers; None for one of a shape that is not its own."""
    if all(isinstance(rows, GrowingSlabs) for rows in tensors.computed()):
        yield from _of_slabs(tensors, stored)
        return
    for tokens in _alike(tensors, site):
        shape = shape_at(tokens.start)
        if all(rows[tokens.start].shape == shape for rows in (tensors.ref, tensors.got)):
            take = partial(_stacked, tokens=tokens)
            yield tokens, numbers.measure(tensors.case(take, stored))
        else:
            yield tokens, None


def _alike(tensors: Tensors, site: str) -> list[range]:
    """Tokens whose tensors have one shape, at most ELEMENTS together; else one by one."""
    count, first = len(tensors.ref), (tensors.ref[0].shape, tensors.got[0].shape)
    grows = "S" in sites.SHAPES[site]
    one = all((r.shape, g.shape) == first for r, g in zip(tensors.ref, tensors.got, strict=True))
    size = max(ELEMENTS // max(tensors.ref[0].size, 1), 1) if one and not grows else 1
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _of_slabs(tensors: Tensors, stored: Storage) -> Iterator[tuple[range, Numbers]]:
    for run in _growth(tensors.ref, tensors.got, stored):
        tokens = range(run.start, run.start + 1)
        found = numbers.measure(tensors.case(partial(_stacked, tokens=tokens), stored))
        yield tokens, found
        size = max(ELEMENTS // tensors.ref[run.start][-1].size, 1)
        for start in range(run.start + 1, run.stop, size):
            tokens = range(start, min(start + size, run.stop))
            rows = numbers.measure(tensors.case(partial(_newest, tokens=tokens), stored))
            found = slabs.of_grown(found, rows)
            yield tokens, found


def _growth(ref: Rows, got: Rows, stored: Storage) -> Iterator[range]:
    """Runs of tokens: each slab but the first kept the one before, in which all was sound."""
    start = 0
    for token in range(1, len(ref)):
        unseen = got[start] if token == start + 1 else got[token - 1][-1:]
        if not (
            numbers.holds_only(unseen[None], stored).all()
            and np.isfinite(unseen).all()
            and all(slabs.grew(rows[token - 1], rows[token]) for rows in (ref, got))
        ):
            yield range(start, token)
            start = token
    yield range(start, len(ref))


def _stacked(rows: Rows, tokens: range) -> np.ndarray:
    if isinstance(rows, np.ndarray):
        return rows[tokens.start : tokens.stop]
    return np.stack([rows[token] for token in tokens])


def _newest(rows: Rows, tokens: range) -> np.ndarray:
    """The slots that these tokens appended, as slabs of one slot."""
    if isinstance(rows, GrowingSlabs):
        return rows.new_TKH[tokens.start : tokens.stop, None]
    return np.stack([rows[token][-1:] for token in tokens])
