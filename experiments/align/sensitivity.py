"""What a run could have seen: the smallest error that it would have found at each site."""

from dataclasses import dataclass

from experiments.align import verdict
from experiments.align.compare import SiteVerdict


@dataclass(frozen=True)
class Sensitivity:
    """An error of `absolute` in any one element of any token would have been above its floor.

    relative: the same over the rms of the tensor it lies in, at the least sensitive token.
    """

    absolute: float
    relative: float


def of(found: SiteVerdict) -> Sensitivity | None:
    """None where nothing could have been found: not judged, vacuous, inconclusive."""
    judged = [j for j in found.judgements if j.detects is not None]
    if not judged or any(j.status in verdict.UNDECIDED for j in judged):
        return None
    return Sensitivity(
        max(j.detects for j in judged),
        max(_over(j.detects, j.signal) for j in judged),
    )


def _over(error: float, signal: float) -> float:
    return error / signal if signal else 0.0 if error == 0 else float("inf")
