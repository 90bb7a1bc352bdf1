"""Studies: which policies answer a question, and the tables that answer it."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.ablation.evaluate import Cost
from experiments.ablation.factors import Factor, combined
from experiments.align import sites
from experiments.report.page import Table
from greta_jax.precision import Policy

STUDIES = ("one_factor", "cumulative", "pairs", "by_site", "by_layer", "kv_layers")


@dataclass(frozen=True)
class Variant:
    """One policy of a study, and the factors it is made of."""

    name: str
    factors: tuple[Factor, ...]
    policy: Policy


def variants(study: str, base: Policy, factors: Sequence[Factor], layers: int) -> list[Variant]:
    """The policies of a study, in the order of its table."""
    singles = [(factor,) for factor in factors]
    make: Mapping[str, Callable[[], list[tuple[Factor, ...]]]] = {
        "one_factor": lambda: singles,
        "cumulative": lambda: [tuple(factors[: n + 1]) for n in range(len(factors))],
        "pairs": lambda: singles + list(itertools.combinations(factors, 2)),
        "by_site": lambda: [(_at(f, site=site),) for f in factors for site in _sites_of(f)],
        "by_layer": lambda: [(_at(f, layer=n),) for f in factors for n in range(layers)],
        "kv_layers": lambda: [],
    }
    chosen = make[study]()
    return [Variant(" ".join(map(str, c)), tuple(c), combined(base, c)) for c in chosen]


def _sites_of(factor: Factor) -> tuple[str, ...]:
    """Where a factor can make a difference."""
    own = {"score": ("attn.scores",), "softmax": ("attn.probs",), "pv": ("attn.out",)}
    own |= {"kv": ("kv.k", "kv.v"), "exp": ("attn.probs", "ffn.act"), "probs": ("attn.out",)}
    own |= {"order": ("attn.scores", "attn.out")}
    return factor.sites or own.get(factor.field, sites.SITES)


def _at(factor: Factor, site: str | None = None, layer: int | None = None) -> Factor:
    """The factor at one site or in one layer only."""
    where = factor.sites if site is None else (site,)
    first, last = (factor.first, factor.last) if layer is None else (layer, layer)
    return Factor(factor.field, factor.value, where, first, last)


@dataclass(frozen=True)
class Summary:
    """A variant over all prompts. kl_sem: standard error of the mean over tokens."""

    name: str
    kl_mean: float
    kl_sem: float
    kl_max: float
    flips: int
    tokens: int
    worst: str
    growth: tuple[tuple[int, float], ...]


def summary(name: str, costs: Sequence[Cost]) -> Summary:
    """One row: `growth` is the relative rms error of resid.out, by layer."""
    kl_T = np.concatenate([cost.kl_T for cost in costs])
    sem = kl_T.std(ddof=1) / np.sqrt(len(kl_T)) if len(kl_T) > 1 else np.nan
    relative = worst_by_place(costs)
    place = max(relative, key=lambda p: relative[p]) if any(relative.values()) else None
    growth = [(layer, size) for (layer, site), size in relative.items() if site == "resid.out"]
    return Summary(
        name,
        float(kl_T.mean()),
        float(sem),
        float(kl_T.max()),
        sum(len(cost.flips) for cost in costs),
        len(kl_T),
        sites.name(*place) if place else "",
        tuple(sorted(growth)),
    )


def worst_by_place(costs: Sequence[Cost]) -> dict[tuple[int, str], float]:
    """The largest relative rms error of each place over prompts."""
    found: dict[tuple[int, str], float] = {}
    for cost in costs:
        for place, error in cost.sites.items():
            found[place] = max(found.get(place, 0.0), error.relative)
    return found


def table(study: str, rows: Sequence[Summary], budget_nats: float) -> Table:
    """The study's answer, the costliest first, but for `cumulative`."""
    columns = ["deviation", "KL mean", "± of mean", "KL max", "flips", "worst place"]
    if study == "pairs":
        columns.append("beyond the sum")
    ordered = rows if study == "cumulative" else sorted(rows, key=lambda row: -row.kl_mean)
    single = {row.name: row.kl_mean for row in rows}
    cells = []
    for row in ordered:
        values = [row.name, row.kl_mean, row.kl_sem, row.kl_max, f"{row.flips} of {row.tokens}"]
        values.append(row.worst)
        if study == "pairs":
            parts = row.name.split(" ")
            extra = row.kl_mean - sum(single[p] for p in parts) if len(parts) > 1 else None
            values.append(extra)
        cells.append((*values, "within" if row.kl_mean <= budget_nats else "beyond"))
    tones = {"within": "good", "beyond": "bad"}
    return Table((*columns, f"KL budget {budget_nats:g}"), cells, tones)


def sentences(study: str, rows: Sequence[Summary], budget_nats: float) -> list[str]:
    """The answer in words."""
    if not rows:
        return []
    worst = max(rows, key=lambda row: row.kl_mean)
    beyond = [row for row in rows if row.kl_mean > budget_nats]
    flips = sum(row.flips > 0 for row in rows)
    found = [
        f"{worst.name} costs most: {worst.kl_mean:.3g} ± {worst.kl_sem:.1g} nats a token, "
        f"{worst.flips} of {worst.tokens} tokens flip.",
        f"{len(rows) - len(beyond)} of {len(rows)} deviations stay within {budget_nats:g} nats "
        f"a token; {flips} flip a token.",
    ]
    if study == "by_site" and beyond:
        names = ", ".join(row.name for row in sorted(beyond, key=lambda row: -row.kl_mean)[:8])
        found.append(f"more precision is needed for: {names}.")
    return found
