"""What a click on a map opens: errors by head and position, packed so that a page stays small."""

import base64
from collections.abc import Sequence

import numpy as np

from experiments.align import sites
from experiments.report.maps import Maps, group_kind

STEPS_PER_DECADE = 16
LOWEST_DECADE = -10
NOTHING, LARGEST = 0, 255
LIMIT_BYTES = 1_000_000
"""Of packed detail in one page, before base64."""


def code(ratio: np.ndarray) -> np.ndarray:
    """Ratios as bytes: 0 nothing, 1 up to 1e-10 (zero too), 255 beyond the scale or infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = STEPS_PER_DECADE * (np.log10(ratio.astype(np.float64)) - LOWEST_DECADE)
        codes = np.clip(np.round(np.nan_to_num(steps, nan=0.0)) + 1, 1, LARGEST)
    return np.where(np.isnan(ratio), NOTHING, codes).astype(np.uint8)


def decode(codes: np.ndarray) -> np.ndarray:
    """The ratios again, to within half a step of a sixteenth of a decade."""
    ratio = 10.0 ** (LOWEST_DECADE + (codes.astype(np.float64) - 1) / STEPS_PER_DECADE)
    ratio = np.where(codes == 1, 0.0, np.where(codes == LARGEST, np.inf, ratio))
    return np.where(codes == NOTHING, np.nan, ratio)


def bins(tokens: int, most: int) -> list[range]:
    """At most `most` runs of neighbouring positions of equal length, but for the last."""
    width = max(1, -(-tokens // max(1, most)))
    return [range(start, min(start + width, tokens)) for start in range(0, tokens, width)]


def columns(most: int, prompts: int) -> int:
    """Columns of one of `prompts` maps, so that all of them stay small together."""
    return max(6, min(most, 2 * most // prompts))


def label(positions: range) -> str:
    first, last = positions.start, positions.stop - 1
    return str(first) if first == last else f"{first}-{last}"


def binned_max(array: np.ndarray, runs: Sequence[range], axis: int = 1) -> np.ndarray:
    """The largest value of each run of positions; NaN only where all are NaN."""
    lowest = np.where(np.isnan(array), -np.inf, array)
    parts = [lowest.take(list(run), axis).max(axis=axis) for run in runs]
    found = np.stack(parts, axis) if parts else lowest
    return np.where(np.isneginf(found), np.nan, found)


def payload(maps: Maps, prompts: int) -> dict:
    """The detail of one of `prompts` prompts, for the page's script."""
    places, tokens, groups = maps.groups_PTG.shape
    runs = bins(tokens, LIMIT_BYTES // max(1, prompts * places * groups))
    codes = code(binned_max(maps.groups_PTG, runs))
    return {
        "places": [[layer_name(layer), site] for layer, site in maps.places],
        "kinds": [group_kind(site) for _, site in maps.places],
        "positions": [label(run) for run in runs],
        "groups": groups,
        "codes": base64.b64encode(codes.tobytes()).decode("ascii"),
        "steps_per_decade": STEPS_PER_DECADE,
        "lowest_decade": LOWEST_DECADE,
    }


def layer_name(layer: int) -> str:
    """`outside` stands for embed, final.norm and logits."""
    return "outside" if layer == sites.NO_LAYER else str(layer)
