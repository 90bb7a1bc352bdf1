"""The floor of an error: what rounding alone may do, element by element.

A verdict is a ratio, error over floor. The first source is the a-priori bound of the op at the
engine's declared precision; ablation and exact bits are further sources of the same form.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Floor:
    """Elementwise floors of one tensor, by source. The loosest applicable source decides."""

    by_source: dict[str, np.ndarray]

    def array(self) -> np.ndarray:
        return np.maximum.reduce([np.asarray(a, np.float64) for a in self.by_source.values()])


def ratio(error: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """|error| / floor: 0 where nothing is wrong, infinite for NaN or an exact op that was not."""
    magnitude = np.where(np.isnan(error), np.inf, np.abs(error))
    floor = np.broadcast_to(np.asarray(floor, np.float64), magnitude.shape)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(magnitude == 0, 0.0, magnitude / floor)
