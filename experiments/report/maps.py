"""What the pages draw of one prompt: sizes of errors by place and token, and by head within."""

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.align import sites, verdict
from experiments.align.compare import SiteVerdict
from experiments.align.errors import RecordError
from experiments.align.invariants import LayerInvariants
from experiments.align.verdict import Judgement, Status

STATUSES = tuple(str(status) for status in Status)
GROUPS = 16
"""Blocks into which a row without heads is cut."""

NUMBERS = (
    *("total_mae", "total_max", "local_mae", "local_max", "propagated_mae", "propagated_max"),
    *("floor_max", "local_over_floor"),
)
ARRAYS = ("statuses_PT", "groups_PTG", "kv_LKS", "kv_position", *NUMBERS)


@dataclass(frozen=True)
class Maps:
    """`P` places (layer, site) in dataflow order, `T` tokens, `G` heads or blocks of a row.

    numbers: name -> PT, NaN where nothing was measured. groups_PTG: the largest local error over
    floor within each head or block, NaN beyond a place's own number of them.
    """

    places: tuple[tuple[int, str], ...]
    statuses_PT: np.ndarray
    numbers: Mapping[str, np.ndarray]
    groups_PTG: np.ndarray
    kv_LKS: np.ndarray
    kv_position: int

    @property
    def propagated_over_floor(self) -> np.ndarray:
        """Largest propagated error over largest floor, PT: the two need not be of one element."""
        with np.errstate(divide="ignore", invalid="ignore"):
            found = self.numbers["propagated_max"] / self.numbers["floor_max"]
        return np.where(self.numbers["propagated_max"] == 0, 0.0, found)


def group_kind(site: str) -> str:
    """What the groups of a site are: `head`, `kv head` or `block`."""
    letters = sites.SHAPES[site]
    return "head" if "N" in letters else "kv head" if "K" in letters else "block"


def _by_group(site: str, ratios: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """The largest ratio of each head, or of each of at most GROUPS equal blocks, a row a token."""
    if len({ratio.shape for ratio in ratios}) > 1:
        return [row for ratio in ratios for row in _by_group(site, [ratio])]
    whole = np.stack(ratios)
    whole = np.where(np.isnan(whole), np.inf, whole)
    letters = sites.SHAPES[site].removeprefix("T")
    if group_kind(site) == "block":
        blocks = np.array_split(whole, GROUPS, axis=1)
        return np.stack([block.max(axis=1) for block in blocks if block.size], axis=1)
    axis = 1 + letters.index("N" if "N" in letters else "K")
    others = tuple(i for i in range(1, whole.ndim) if i != axis)
    return whole.max(axis=others, initial=0.0)


def _numbers(judgement: Judgement) -> list[float]:
    sizes = (judgement.total, judgement.local, judgement.propagated)
    found = [number for size in sizes for number in ((size.mae, size.max) if size else (None,) * 2)]
    found += [judgement.floor_max, judgement.ratio_max]
    return [np.nan if number is None else number for number in found]


def of(verdicts: Sequence[SiteVerdict], last_step: Sequence[LayerInvariants] = ()) -> Maps:
    """The maps of one prompt's verdicts, and of what its last watched step did to the cache."""
    tokens = max((len(found.judgements) for found in verdicts), default=0)
    seen = [(v.site, [ratio for ratio in v.ratios if ratio.size]) for v in verdicts]
    groups = [_by_group(site, ratios) if ratios else [] for site, ratios in seen]
    widest = max((len(row) for rows in groups for row in rows), default=1)
    statuses_PT = np.zeros((len(verdicts), tokens), np.uint8)
    numbers_PTX = np.full((len(verdicts), tokens, len(NUMBERS)), np.nan)
    groups_PTG = np.full((len(verdicts), tokens, widest), np.nan, np.float32)
    for p, found in enumerate(verdicts):
        for t, judgement in enumerate(found.judgements):
            statuses_PT[p, t] = STATUSES.index(str(judgement.status))
            numbers_PTX[p, t] = _numbers(judgement)
        for t, row in enumerate(groups[p]):
            groups_PTG[p, t, : len(row)] = row
    return Maps(
        tuple((found.layer, found.site) for found in verdicts),
        statuses_PT,
        {name: numbers_PTX[..., i] for i, name in enumerate(NUMBERS)},
        groups_PTG,
        np.stack([i.touched_KS for i in last_step]) if last_step else np.zeros((0, 0, 0), "u1"),
        last_step[0].position if last_step else -1,
    )


def save(path: Path, maps: Maps) -> Path:
    """Writes the maps beside `path` and renames them into place. Raises RecordError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.npz")
    arrays = {"statuses_PT": maps.statuses_PT, "groups_PTG": maps.groups_PTG, **maps.numbers}
    arrays |= {"kv_LKS": maps.kv_LKS, "kv_position": np.array(maps.kv_position)}
    try:
        np.savez_compressed(beside, places=json.dumps(maps.places), **arrays)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise RecordError(f"cannot write {path}: {error.strerror}") from error
    return path


def load(path: Path) -> Maps:
    """Raises RecordError with the path for a file that is not one of ours."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            places = tuple((layer, site) for layer, site in json.loads(str(stored["places"])))
            arrays = {name: stored[name] for name in ARRAYS}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise RecordError(f"{path} holds no maps of a run: {reason}") from error
    numbers = {name: arrays[name] for name in NUMBERS}
    if unknown := {site for _, site in places} - set(sites.SITES):
        raise RecordError(f"{path} names unknown sites: {', '.join(sorted(unknown))}")
    cache = arrays["kv_LKS"], int(arrays["kv_position"])
    return Maps(places, arrays["statuses_PT"], numbers, arrays["groups_PTG"], *cache)


def failing(maps: Maps) -> np.ndarray:
    """PT: whether the verdict there is a failure."""
    codes = [STATUSES.index(str(status)) for status in verdict.FAILED]
    return np.isin(maps.statuses_PT, codes)
