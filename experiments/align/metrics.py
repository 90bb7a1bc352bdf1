"""Sizes of an error, and where it is largest."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Size:
    """Mean and maximum of |error|, and the index of that maximum."""

    mae: float
    max: float
    at: tuple[int, ...]


def difference(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left - right in fp64; equal infinities (masked scores) differ by zero."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    same_infinity = np.isinf(left) & (left == right)
    with np.errstate(invalid="ignore"):
        return np.where(same_infinity, 0.0, left - right)


def size(error: np.ndarray) -> Size:
    """NaN counts as the largest error there is."""
    magnitude = np.where(np.isnan(error), np.inf, np.abs(error))
    at = np.unravel_index(int(np.argmax(magnitude)), magnitude.shape)
    return Size(float(magnitude.mean()), float(magnitude[at]), tuple(int(i) for i in at))


def rms(array: np.ndarray) -> float:
    finite = array[np.isfinite(array)].astype(np.float64)
    return float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0


@dataclass(frozen=True)
class Summary:
    """What GRETA's records say of a tensor."""

    min: float
    max: float
    mean: float


def summary(array: np.ndarray) -> Summary:
    wide = array.astype(np.float64)
    return Summary(float(wide.min()), float(wide.max()), float(wide.mean()))
