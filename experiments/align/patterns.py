"""The shape of an error: where in a tensor it lies, and what it makes of the right values.

Every predicate looks at one error map and returns a phrase, or nothing. None has a tolerance: an
element is wrong if its local error is above its floor, and equal if within it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.align import floors, metrics, sites

TILES = (16, 32)


@dataclass(frozen=True)
class ErrorMap:
    """One site of one layer: T tokens first. Of the cache, the slot that each token appended.

    `failed` and `judged` are the layers in which this site is wrong, and all that were looked at.
    """

    site: str
    got: np.ndarray
    right: np.ndarray
    floor: np.ndarray
    failed: tuple[int, ...] = ()
    judged: tuple[int, ...] = ()
    G: int = 1

    @property
    def wrong(self) -> np.ndarray:
        return floors.ratio(metrics.difference(self.got, self.right), self.floor) > 1.0

    @property
    def by_token(self) -> np.ndarray:
        return self.wrong.reshape(len(self.got), -1).any(axis=1)

    @property
    def heads(self) -> int:
        """Heads of the second axis; 0 for a row without heads."""
        letters = sites.SHAPES[self.site]
        return self.got.shape[1] if letters[1:2] in ("N", "K") else 0


def error_map(site: str, got: Sequence, right: Sequence, floor: Sequence, **facts) -> ErrorMap:
    """Of scores and probabilities, slots that were not live are filled with what is not wrong."""
    letters = sites.SHAPES[site]
    if letters.startswith("S"):
        got, right, floor = ([row[-1] for row in rows] for rows in (got, right, floor))
    elif letters.endswith("S"):
        S = len(got)
        got, right, floor = (
            [np.pad(row_NS, ((0, 0), (0, S - row_NS.shape[1]))) for row_NS in rows]
            for rows in (got, right, floor)
        )
    arrays = (
        np.stack([np.asarray(row, np.float64) for row in rows]) for rows in (got, right, floor)
    )
    return ErrorMap(site, *arrays, **facts)


def ranges(numbers: Sequence[int]) -> str:
    """0-3, 7"""
    parts, numbers = [], sorted(numbers)
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def some_of(what: str, wrong: np.ndarray, step: int = 1) -> str:
    """Which of several are wrong: from one on, all but a few, only a few; empty if all or none."""
    at, clean = np.flatnonzero(wrong), np.flatnonzero(~wrong)
    if not len(at) or not len(clean):
        return ""
    if len(at) > 1 and at[0] > 0 and len(at) == len(wrong) - at[0]:
        return f"{what} >= {at[0] * step}"
    if len(clean) < len(at):
        return f"all {what} but {ranges(clean * step)}"
    return f"only {what} {ranges(at * step)}"


def not_finite(m: ErrorMap) -> str:
    bad = ~np.isfinite(m.got)
    return f"{int(bad.sum())} of {bad.size} elements are not finite" if bad.any() else ""


def some_positions(m: ErrorMap) -> str:
    """Which tokens: rows >= 32 of a tiled kernel, all but the first, the first alone."""
    return some_of("positions", m.by_token)


def some_heads(m: ErrorMap) -> str:
    """Which heads, or which groups of G heads that share a kv head."""
    if m.heads < 2:
        return ""
    wrong_N = m.wrong.reshape(len(m.got), m.heads, -1).any(axis=(0, 2))
    groups = wrong_N.reshape(-1, m.G) if sites.SHAPES[m.site][1] == "N" else wrong_N[:, None]
    if m.G > 1 and groups.shape[1] == m.G and (groups.all(axis=1) == groups.any(axis=1)).all():
        return some_of("head groups", groups.any(axis=1))
    return some_of("heads", wrong_N)


def some_elements(m: ErrorMap) -> str:
    """Which elements of a head or row: whole blocks of 32 or 16, else one parity."""
    wrong_E = m.wrong.reshape(-1, m.got.shape[-1]).any(axis=0)
    if wrong_E.all() or not wrong_E.any():
        return ""
    for parity, word in ((0, "even"), (1, "odd")):
        if wrong_E[parity::2].all() and not wrong_E[1 - parity :: 2].any():
            return f"only {word} elements"
    for tile in reversed(TILES):
        blocks = wrong_E[: len(wrong_E) // tile * tile].reshape(-1, tile)
        if len(wrong_E) % tile == 0 and (blocks.all(axis=1) == blocks.any(axis=1)).all():
            return some_of(f"blocks of {tile} elements from", blocks.any(axis=1), tile)
    return some_of("elements", wrong_E)


def some_layers(m: ErrorMap) -> str:
    """Which layers, of those that were judged."""
    wrong = [layer in m.failed for layer in m.judged]
    if all(wrong) or not any(wrong):
        return ""
    clean = [layer for layer, bad in zip(m.judged, wrong, strict=True) if not bad]
    if len(clean) <= len(m.failed):
        return f"all judged layers but {ranges(clean)}"
    return f"only layers {ranges(m.failed)} of those judged"


def all_zero(m: ErrorMap) -> str:
    return "everything wrong is zero" if not m.got[m.wrong].any() else ""


def constant_ratio(m: ErrorMap) -> str:
    """The right values times one number, or one number a head."""
    ratio = _ratio(m.got, m.right, m.floor)
    if ratio is not None:
        return f"{ratio:.6g} times the right values"
    if m.heads < 2:
        return ""
    by_head = [_ratio(m.got[:, n], m.right[:, n], m.floor[:, n]) for n in range(m.heads)]
    if any(ratio is None for ratio in by_head):
        return ""
    return "one ratio a head: " + ", ".join(f"{ratio:.6g}" for ratio in by_head)


def _ratio(got: np.ndarray, right: np.ndarray, floor: np.ndarray) -> float | None:
    """The number r for which got is r * right within the floor, unless that is 0; else None."""
    power = np.sum(right * right)
    if right.size < 2 or not np.isfinite(got).all() or power == 0:
        return None
    ratio = float(np.sum(got * right) / power)
    # The floor of r * right is |r| times that of right; what r itself is off by, as much again.
    fits = np.abs(got - ratio * right) <= 2 * max(abs(ratio), 1.0) * floor
    return ratio if fits.all() and ratio != 0 else None


def shifted_by_a_token(m: ErrorMap) -> str:
    """Every row is the right row of the token before or after."""
    if len(m.got) < 3:
        return ""
    flat = [a.reshape(len(a), -1) for a in (m.got, m.right, m.floor)]
    for step, word in ((1, "before"), (-1, "after")):
        got, right, floor = flat[0], np.roll(flat[1], step, 0), np.roll(flat[2], step, 0)
        inner = slice(1, -1)
        if (np.abs(got - right) <= floor)[inner].all():
            return f"every row is that of the token {word}"
    return ""


def permuted_heads(m: ErrorMap) -> str:
    """Each head holds the right values of another."""
    if m.heads < 2:
        return ""
    source = []
    for n in range(m.heads):
        fits = [
            other
            for other in range(m.heads)
            if (np.abs(m.got[:, n] - m.right[:, other]) <= m.floor[:, other]).all()
        ]
        if len(fits) != 1:
            return ""
        source += fits
    return f"heads hold the values of heads {', '.join(map(str, source))}"


def permuted_in_tiles(m: ErrorMap) -> str:
    """Whole 16x16 tiles of [token, output] hold their own right values in another order."""
    flat = [a.reshape(len(a), -1) for a in (m.got, m.right, m.floor)]
    tile = TILES[0]
    T, E = (size // tile * tile for size in flat[0].shape)
    if not T or not E:
        return ""
    blocks = [
        a[:T, :E].reshape(T // tile, tile, E // tile, tile).swapaxes(1, 2).reshape(-1, tile, tile)
        for a in flat
    ]
    got, right, floor = blocks
    wrong = (np.abs(got - right) > floor).any(axis=(1, 2))
    if not wrong.any():
        return ""
    got, right, floor = got[wrong], right[wrong], floor[wrong]
    if (np.abs(got - right.swapaxes(1, 2)) <= floor.swapaxes(1, 2)).all():
        return f"{wrong.sum()} of {len(wrong)} tiles of 16x16 are transposed"
    ordered = [np.sort(a.reshape(len(a), -1), axis=1) for a in (got, right)]
    if (np.abs(ordered[0] - ordered[1]) <= floor.max(axis=(1, 2))[:, None]).all():
        return f"{wrong.sum()} of {len(wrong)} tiles of 16x16 are permuted within"
    return ""


def permuted_in_rows(m: ErrorMap) -> str:
    """Every row, or every head of it, holds its own right values in another order."""
    rows = [a.reshape(-1, a.shape[-1]) for a in (m.got, m.right, m.floor)]
    if rows[0].shape[1] < 2 or not np.isfinite(rows[0]).all():
        return ""
    ordered = [np.sort(a, axis=1) for a in rows[:2]]
    fits = np.abs(ordered[0] - ordered[1]) <= rows[2].max(axis=1)[:, None]
    return "each row holds its own right values in another order" if fits.all() else ""


Predicate = Callable[[ErrorMap], str]
PREDICATES: tuple[Predicate, ...] = (
    not_finite,
    some_layers,
    some_positions,
    some_heads,
    some_elements,
    all_zero,
    constant_ratio,
    shifted_by_a_token,
    permuted_heads,
    permuted_in_tiles,
    permuted_in_rows,
)


def find(m: ErrorMap) -> tuple[str, ...]:
    """Every phrase that holds of a map with at least one wrong element; none of a clean one."""
    if not m.wrong.any():
        return ()
    with np.errstate(invalid="ignore"):
        return tuple(phrase for predicate in PREDICATES if (phrase := predicate(m)))
