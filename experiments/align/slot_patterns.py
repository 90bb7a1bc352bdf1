"""Which slots of the KV cache an error lies in, by their number and by their age."""

from collections.abc import Sequence

import numpy as np

from experiments.align import floors, metrics, sites
from experiments.align.patterns import TILES, ranges, some_of


def slot_map(site: str, got: Sequence, right: Sequence, floor: Sequence) -> np.ndarray | None:
    """Which slots of the cache are wrong at which token, TS, of a site that has them all.

    None for other sites, and where a token's row is not of all the slots that were live.
    """
    axis = sites.SHAPES[site].removeprefix("T").find("S")
    if axis < 0 or any(np.shape(row)[axis] != t + 1 for t, row in enumerate(got)):
        return None
    wrong_TS = np.zeros((len(got), len(got)), bool)
    for t, rows in enumerate(zip(got, right, floor, strict=True)):
        one, other, least = (np.asarray(row, np.float64) for row in rows)
        bad = floors.ratio(metrics.difference(one, other), least) > 1.0
        wrong_TS[t, : t + 1] = bad.any(axis=tuple(i for i in range(bad.ndim) if i != axis))
    return wrong_TS


def find(wrong_TS: np.ndarray) -> tuple[str, ...]:
    """Which slots are wrong: by their number, and by how far they lie before the newest."""
    live_TS = np.tri(len(wrong_TS), dtype=bool)
    if not wrong_TS.any() or wrong_TS[live_TS].all():
        return ("every live slot",) if wrong_TS.any() else ()
    found = []
    age_TS = np.subtract.outer(np.arange(len(wrong_TS)), np.arange(len(wrong_TS)))
    by_age = np.array([wrong_TS[age_TS == age].any() for age in range(len(wrong_TS))])
    if (by_age[np.where(live_TS, age_TS, 0)] & live_TS == wrong_TS).all():
        found.append(_by_age(by_age))
    found.append(_by_slot(wrong_TS.any(axis=0)))
    return tuple(phrase for phrase in found if phrase)


def _by_slot(wrong: np.ndarray) -> str:
    """Whole tiles where they say it all, unless everything from one slot on is wrong."""
    plain = some_of("slots", wrong)
    for tile in reversed(TILES):
        blocks = wrong[: len(wrong) // tile * tile].reshape(-1, tile)
        whole = (blocks.all(axis=1) == blocks.any(axis=1)).all()
        if len(blocks) > 1 and whole and not wrong[blocks.size :].any():
            if not plain.startswith("slots >="):
                return some_of(f"tiles of {tile} slots from", blocks.any(axis=1), tile)
    return plain


def _by_age(wrong: np.ndarray) -> str:
    """Of ages in slots before the newest."""
    at, clean = np.flatnonzero(wrong), np.flatnonzero(~wrong)
    if list(at) == [0]:
        return "only the newest slot"
    if list(clean) == [0]:
        return "all slots but the newest"
    if len(at) == at[-1] + 1:
        return f"only the newest {len(at)} slots"
    if len(clean) == at[0]:
        return f"only slots more than {at[0] - 1} before the newest"
    return f"only slots {ranges(at)} before the newest"
