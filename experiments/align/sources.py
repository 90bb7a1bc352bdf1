"""What the sources of the floors say of each other: bound, ablation, exact bits."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from experiments.align import sites
from experiments.align.compare import SiteVerdict


@dataclass(frozen=True)
class SiteSources:
    """One site over its judged layers and tokens.

    bound: the largest floor. ablation: the largest error of the declared precision itself, and
    `ablation_over_bound` the largest element of that over its bound. local_over_ablation: mean
    error of the engine over that of the declared precision: near 1 it rounds as it says, far above
    1 it is coarser, even if below its floor. bits_modelled, bits_differ: elements whose bits are
    predicted, and those of them that are others (None: not modelled).
    """

    site: str
    bound: float
    ablation: float | None
    ablation_over_bound: float | None
    local_over_ablation: float | None
    bits_modelled: int | None
    bits_differ: int | None


def of(verdicts: Sequence[SiteVerdict]) -> list[SiteSources]:
    """Every site that was judged, in dataflow order."""
    found = []
    for site in sites.SITES:
        here = [v for v in verdicts if v.site == site and v.judgements[0].floor_max is not None]
        if here:
            found.append(_of_site(site, here))
    return found


def _of_site(site: str, here: Sequence[SiteVerdict]) -> SiteSources:
    judged = [j for v in here for j in v.judgements if j.floor_max is not None]
    ablated = [j for j in judged if j.ablation]
    modelled = [
        (ratios.size, j.bits_differ)
        for v in here
        for j, ratios in zip(v.judgements, v.ratios, strict=True)
        if j.bits_differ is not None
    ]
    typical = np.mean([j.ablation.mae for j in ablated]) if ablated else 0.0
    return SiteSources(
        site,
        max(j.floor_max for j in judged),
        max((j.ablation.max for j in ablated), default=None),
        max((j.ablation_ratio for j in ablated), default=None),
        float(np.mean([j.local.mae for j in ablated]) / typical) if typical else None,
        sum(size for size, _ in modelled) if modelled else None,
        sum(differ for _, differ in modelled) if modelled else None,
    )


def sentence(found: Sequence[SiteSources]) -> str:
    """Agreement of the sources in one line; what disagrees is named."""
    ablated = [s for s in found if s.ablation_over_bound is not None]
    if not ablated:
        return "floors: bound only"
    worst = max(ablated, key=lambda s: s.ablation_over_bound)
    verb = "disagree" if worst.ablation_over_bound > 1 else "agree"
    text = (
        f"floors from bound and ablation {verb}: the declared precision itself errs by at most "
        f"{worst.ablation_over_bound:.2g} x its bound ({worst.site})"
    )
    modelled = [s for s in found if s.bits_modelled]
    if modelled:
        total, differ = (
            sum(getattr(s, n) for s in modelled) for n in ("bits_modelled", "bits_differ")
        )
        where = ", ".join(s.site for s in modelled if s.bits_differ)
        others = f"{differ} are others ({where})" if differ else "the engine's are the same"
        text += f"; bits predicted for {total} elements of {len(modelled)} sites, {others}"
    return text


def records(found: Sequence[SiteSources]) -> list[dict]:
    """Plain values for JSON, a record a site."""
    return [asdict(one) for one in found]
