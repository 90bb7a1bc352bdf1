"""Through which input a propagated error came: mixed forcing, and shares that add up.

An op is replayed with some of its inputs as the engine had them and the others as the oracle had
them. The share of an input is its Shapley value: what switching it to the engine's adds, averaged
over all orders of switching. Shares sum to the propagated error, and no order is preferred; what
two inputs do only together is divided between them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial

import numpy as np

from experiments.align.floors import ratio
from experiments.align.metrics import difference

Corner = frozenset[str]
"""The inputs that are the engine's; the others are the oracle's."""


@dataclass(frozen=True)
class Split:
    """Shares of a propagated error by input; `residual_ratio` is the difference between their sum
    and the whole, over what fp64 rounding allows. All elementwise."""

    shares: Mapping[str, np.ndarray]
    residual_ratio: np.ndarray

    @property
    def closure_ratio(self) -> float:
        return float(self.residual_ratio.max(initial=0.0))


def mixtures(
    names: Sequence[str], right: Mapping[str, object], wrong: Mapping[str, object]
) -> dict[Corner, dict[str, object]]:
    """The inputs at every corner but the two at which all are `right`, the oracle's, or `wrong`."""
    corners = [frozenset(c) for n in range(1, len(names)) for c in combinations(names, n)]
    return {
        corner: {name: (wrong if name in corner else right)[name] for name in right}
        for corner in corners
    }


def split(at: Mapping[Corner, np.ndarray]) -> Split:
    """Shapley shares from the values at every corner."""
    names = sorted(max(at, key=len))
    n = len(names)
    shares = {}
    for name in names:
        share = 0.0
        for corner in (corner for corner in at if name not in corner):
            weight = factorial(len(corner)) * factorial(n - len(corner) - 1) / factorial(n)
            share = share + weight * difference(at[corner | {name}], at[corner])
        shares[name] = share
    whole = difference(at[frozenset(names)], at[frozenset()])
    residual = sum(shares.values()) - whole
    # A corner enters all shares with a weight of at most 2 together; the longest chain of
    # roundings is a difference, a weight, its product, the sums over corners and over shares.
    finite = (np.where(np.isfinite(a), np.abs(a), 0.0) for a in at.values())
    allowed = 2 * (len(at) + n + 4) * np.finfo(np.float64).eps * sum(finite)
    return Split(shares, np.where(np.isfinite(residual), ratio(residual, allowed), 0.0))
