"""Studies: which policies answer a question, and the tables that answer it."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.ablation.evaluate import Cost
from experiments.ablation.factors import Factor, combined
from experiments.align import sites
from experiments.report.page import Table, number
from greta_jax.precision import Policy

UNITS = {"keep_layers": "layer", "keep_ops": "op"}
"""Studies that search, and what they keep at the base's precision."""

STUDIES = ("one_factor", "cumulative", "pairs", "by_site", "by_layer", *UNITS)


@dataclass(frozen=True)
class Variant:
    """One policy of a study, and the factors it is made of."""

    name: str
    factors: tuple[Factor, ...]
    policy: Policy


def variants(study: str, base: Policy, factors: Sequence[Factor], layers: int) -> list[Variant]:
    """The policies of a study, in the order of its table; of one that searches, what it spares."""
    singles = [(factor,) for factor in factors]
    make: Mapping[str, Callable[[], list[tuple[Factor, ...]]]] = {
        "one_factor": lambda: singles,
        "cumulative": lambda: [tuple(factors[: n + 1]) for n in range(len(factors))],
        "pairs": lambda: singles + list(itertools.combinations(factors, 2)),
        "by_site": lambda: [(part,) for f in factors for part in by_site(f)],
        "by_layer": lambda: [(part,) for f in factors for part in by_layer(f, layers)],
    }
    chosen = make.get(study, lambda: singles)()
    return [Variant(" ".join(map(str, c)), tuple(c), combined(base, c)) for c in chosen]


def parts(study: str, factor: Factor, layers: int) -> tuple[list[Factor], tuple[str, ...]]:
    """What a search may keep, one by one, and what each is called."""
    if UNITS[study] == "layer":
        found = by_layer(factor, layers)
        return found, tuple(str(part.first) for part in found)
    found = by_site(factor)
    return found, tuple(part.sites[0] for part in found)


def by_site(factor: Factor) -> list[Factor]:
    """The factor at each site alone where it can make a difference."""
    own = {"score": ("attn.scores",), "softmax": ("attn.probs",), "pv": ("attn.out",)}
    own |= {"kv": ("kv.k", "kv.v"), "exp": ("attn.probs", "ffn.act"), "probs": ("attn.out",)}
    own |= {"order": ("attn.scores", "attn.out")}
    chosen = factor.sites or own.get(factor.field, sites.SITES)
    return [Factor(factor.field, factor.value, (s,), factor.first, factor.last) for s in chosen]


def by_layer(factor: Factor, layers: int) -> list[Factor]:
    """The factor in each of its layers alone."""
    chosen = range(layers) if factor.first is None else range(factor.first, factor.last + 1)
    return [Factor(factor.field, factor.value, factor.sites, n, n) for n in chosen]


@dataclass(frozen=True)
class Summary:
    """A variant over all prompts. kl_sem: standard error of the mean over tokens.

    worst: where the error is largest, by `worst_error`, relative to the tensor; `at_logits` is
    what is left of it there. growth: the relative rms error of resid.out, by layer.
    """

    name: str
    kl_mean: float
    kl_sem: float
    kl_max: float
    flips: int
    tokens: int
    worst: str
    worst_error: float
    at_logits: float
    growth: tuple[tuple[int, float], ...]


def summary(name: str, costs: Sequence[Cost]) -> Summary:
    kl_T = np.concatenate([cost.kl_T for cost in costs])
    many = len(kl_T) > 1 and np.isfinite(kl_T).all()
    relative = worst_by_place(costs)
    place = max(relative, key=lambda p: relative[p]) if any(relative.values()) else None
    growth = [(layer, size) for (layer, site), size in relative.items() if site == "resid.out"]
    return Summary(
        name,
        float(kl_T.mean()),
        float(kl_T.std(ddof=1) / np.sqrt(len(kl_T))) if many else float("nan"),
        float(kl_T.max()),
        sum(len(cost.flips) for cost in costs),
        len(kl_T),
        sites.name(*place) if place else "",
        relative[place] if place else 0.0,
        relative.get((sites.NO_LAYER, "logits"), 0.0),
        tuple(sorted(growth)),
    )


def worst_by_place(costs: Sequence[Cost]) -> dict[tuple[int, str], float]:
    """The largest relative rms error of each place over prompts."""
    found: dict[tuple[int, str], float] = {}
    for cost in costs:
        for place, error in cost.sites.items():
            found[place] = max(found.get(place, 0.0), error.relative)
    return found


def beyond_the_sum(row: Summary, single: Mapping[str, float]) -> float | None:
    """What a pair costs more than its two parts, each alone; None for a single deviation."""
    names = row.name.split(" ")
    if len(names) < 2 or not set(names) <= set(single):
        return None
    return row.kl_mean - sum(single[name] for name in names)


def table(study: str, rows: Sequence[Summary], budget_nats: float) -> Table:
    """The study's answer, the costliest first, but for `cumulative`."""
    columns = ["deviation", "KL mean", "± of mean", "KL max", "flips", "at logits", "worst place"]
    pairs = study == "pairs"
    columns += ["its error"] + (["beyond the sum"] if pairs else [])
    ordered = rows if study == "cumulative" else sorted(rows, key=lambda row: -row.kl_mean)
    single = {row.name: row.kl_mean for row in rows}
    cells = []
    for row in ordered:
        values = [row.name, row.kl_mean, row.kl_sem, row.kl_max, f"{row.flips} of {row.tokens}"]
        values += [row.at_logits, row.worst or "none", row.worst_error]
        values += [beyond_the_sum(row, single)] if pairs else []
        cells.append((*values, "within" if row.kl_mean <= budget_nats else "beyond"))
    tones = {"within": "good", "beyond": "bad"}
    return Table((*columns, f"KL budget {budget_nats:g}"), cells, tones)


def sentences(study: str, rows: Sequence[Summary], budget_nats: float) -> list[str]:
    """The answer in words."""
    if not rows or study in UNITS:
        return []
    worst = max(rows, key=lambda row: row.kl_mean)
    found = [_of_one(worst, "costs most: " if len(rows) > 1 else "costs ")]
    found += _MORE[study](rows, budget_nats) if study in _MORE else []
    if len(rows) == 1:
        return [*found, f"That is {_against(worst, budget_nats)} of {budget_nats:g} nats a token."]
    within = [row for row in rows if row.kl_mean <= budget_nats]
    flipping = [row for row in rows if row.flips]
    flips = f"{len(flipping)} flip a token" if flipping else "none flips a token"
    return [
        *found,
        f"{len(within)} of {len(rows)} stay within the budget of {budget_nats:g} nats a token; "
        f"{flips}.",
    ]


def _against(row: Summary, budget_nats: float) -> str:
    return "within the budget" if row.kl_mean <= budget_nats else "beyond the budget"


def _of_one(row: Summary, costs: str) -> str:
    sem = f" ± {row.kl_sem:.1g}" if np.isfinite(row.kl_sem) else ""
    text = (
        f"{row.name} {costs}{row.kl_mean:.3g}{sem} nats a token; {row.flips} of {row.tokens} "
        "tokens flip."
    )
    if row.worst:
        text += (
            f" Its largest error is {number(row.worst_error)} of the tensor, at {row.worst}; at "
            f"the logits it is {number(row.at_logits)}."
        )
    grown = [error for _, error in row.growth if error]
    if len(grown) > 1:
        text += f" In the residual stream it goes from {number(grown[0])} to {number(grown[-1])}."
    return text


def _of_pairs(rows: Sequence[Summary], budget_nats: float) -> list[str]:
    single = {row.name: row.kl_mean for row in rows}
    extra = {row.name: beyond_the_sum(row, single) for row in rows}
    extra = {name: value for name, value in extra.items() if value is not None}
    if not extra:
        return []
    name = max(extra, key=lambda n: abs(extra[n]))
    how = "more" if extra[name] > 0 else "less"
    first, second = name.split(" ")
    apart = single[first] + single[second]
    return [
        f"The largest interaction is of {first} with {second}: together they cost "
        f"{abs(extra[name]):.3g} nats {how} than the {apart:.3g} of the two alone."
    ]


def _of_steps(rows: Sequence[Summary], budget_nats: float) -> list[str]:
    steps = [(rows[0].kl_mean, rows[0].name)]
    for before, row in itertools.pairwise(rows):
        steps.append((row.kl_mean - before.kl_mean, row.name.rsplit(" ", 1)[1]))
    added, name = max(steps)
    return [
        f"The step that adds most is {name}: {added:.3g} of the {rows[-1].kl_mean:.3g} nats that "
        f"all {len(rows)} cost together."
    ]


def _of_sites(rows: Sequence[Summary], budget_nats: float) -> list[str]:
    beyond = sorted((r for r in rows if r.kl_mean > budget_nats), key=lambda r: -r.kl_mean)
    if not beyond:
        return ["No place needs more by itself; a keep_ study asks if all can take it at once."]
    names = ", ".join(f"{row.name} ({number(row.kl_mean)})" for row in beyond[:8])
    more = f" and {len(beyond) - 8} more" if len(beyond) > 8 else ""
    return [f"Beyond the budget by themselves: {names}{more}."]


_MORE = {
    **{"pairs": _of_pairs, "cumulative": _of_steps},
    **{"by_site": _of_sites, "by_layer": _of_sites},
}
