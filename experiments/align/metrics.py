"""Sizes of an error, and where it is largest."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Size:
    """Mean and maximum of |error|, and the index of that maximum."""

    mae: float
    max: float
    at: tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """What `Size` and `rms` say of one tensor, for one a token: sums, maxima and their indices.

    at_TX: the first index of the maximum. squares_T, finite_T: of the finite elements alone.
    """

    sum_T: np.ndarray
    count_T: np.ndarray
    max_T: np.ndarray
    at_TX: np.ndarray
    squares_T: np.ndarray
    finite_T: np.ndarray

    def at(self, token: int) -> Size:
        mae = float(self.sum_T[token] / self.count_T[token])
        return Size(mae, float(self.max_T[token]), tuple(self.at_TX[token].tolist()))

    @property
    def rms_T(self) -> np.ndarray:
        return np.sqrt(self.squares_T / np.maximum(self.finite_T, 1))


def sizes(error: np.ndarray) -> Sizes:
    """Of one tensor a token, tokens first. NaN counts as the largest error there is."""
    shape, flat_TX = error.shape[1:], error.reshape(len(error), -1)
    magnitude_TX = np.where(np.isnan(flat_TX), np.inf, np.abs(flat_TX))
    at_T = np.argmax(magnitude_TX, axis=1)
    max_T = np.take_along_axis(magnitude_TX, at_T[:, None], axis=1)[:, 0]
    finite_TX = np.isfinite(flat_TX)
    squares_T = np.square(np.where(finite_TX, flat_TX, 0.0)).sum(axis=1)
    return Sizes(
        magnitude_TX.sum(axis=1),
        np.full(len(flat_TX), flat_TX.shape[1]),
        max_T,
        np.stack(np.unravel_index(at_T, shape), axis=1),
        squares_T,
        finite_TX.sum(axis=1),
    )


def size(error: np.ndarray) -> Size:
    """NaN counts as the largest error there is."""
    return sizes(error[None]).at(0)


def rms(array: np.ndarray) -> float:
    """Over the finite elements."""
    return float(sizes(array[None]).rms_T[0])


def difference(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left - right in fp64; equal infinities (masked scores) differ by zero."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    same_infinity = np.isinf(left) & (left == right)
    with np.errstate(invalid="ignore"):
        return np.where(same_infinity, 0.0, left - right)


@dataclass(frozen=True)
class Summary:
    """What GRETA's records say of a tensor."""

    min: float
    max: float
    mean: float


def summary(array: np.ndarray) -> Summary:
    wide = array.astype(np.float64)
    return Summary(float(wide.min()), float(wide.max()), float(wide.mean()))
