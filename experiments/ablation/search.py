"""Which layers or ops must stay as they are, for a stated budget: greedy, then pruned."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.ablation.factors import Factor, combined
from greta_jax.precision import Policy

MeasureAll = Callable[[Sequence[Policy]], list[float]]
"""Mean KL in nats of each policy."""


@dataclass(frozen=True)
class Kept:
    """The answer: `low` in every part but those `kept` costs `kl` nats.

    unit: `layer` or `op`; parts: their names; stays: what a kept part has instead of `low`. alone:
    the cost of each part if only it is low; kl_none_low: of the base itself.
    """

    low: str
    stays: str
    unit: str
    parts: tuple[str, ...]
    kept: tuple[str, ...]
    kl: float
    kl_all_low: float
    kl_none_low: float
    budget_nats: float
    alone: tuple[float, ...]
    evaluations: int

    @property
    def met(self) -> bool:
        return self.kl <= self.budget_nats

    def sentence(self) -> str:
        count, units = len(self.parts), f"{self.unit}s"
        others = count - len(self.kept)
        budget = f"the budget of {self.budget_nats:g}"
        if not self.met:
            return (
                f"{self.low}: no choice of {units} meets {budget} nats a token; {self.stays} in "
                f"every one of them costs {self.kl_none_low:.3g} by itself."
            )
        if not self.kept:
            return (
                f"{self.low}: no {self.unit} must stay {self.stays}; in all {count} it costs "
                f"{self.kl:.3g} nats a token, within {budget}."
            )
        if not others:
            return (
                f"{self.low}: every {self.unit} must stay {self.stays} ({budget}; all {count} at "
                f"{self.low} cost {self.kl_all_low:.3g} nats a token)."
            )
        names = ", ".join(self.kept)
        return (
            f"{self.low}: {units if len(self.kept) > 1 else self.unit} {names} must stay "
            f"{self.stays}; the other {others} of {count} can take it, for {self.kl:.3g} nats a "
            f"token ({budget}; {self.kl_all_low:.3g} if all do, {self.kl_none_low:.3g} if none)."
        )


def policy_of(base: Policy, parts: Sequence[Factor], kept: Sequence[int]) -> Policy:
    """The factor in every part but those kept."""
    return combined(base, [part for n, part in enumerate(parts) if n not in set(kept)])


def search(
    base: Policy, parts: Sequence[Factor], budget_nats: float, measure: MeasureAll
) -> tuple[tuple[int, ...], dict]:
    """(kept parts, fields of `Kept`): the fewest that were found to meet the budget.

    Parts are kept by their own cost, the dearest first, and dropped again one by one while the
    budget is met. Costs interact, so the set is not proved smallest; but none of it can be dropped.
    """
    counted, everything = 0, range(len(parts))

    def cost(*sets: Sequence[int]) -> list[float]:
        nonlocal counted
        counted += len(sets)
        return measure([policy_of(base, parts, kept) for kept in sets])

    alone_sets = [[n for n in everything if n != part] for part in everything]
    kl_all_low, kl_none_low, *alone = cost((), everything, *alone_sets)
    kept: tuple[int, ...] = ()
    kl = kl_all_low
    if kl > budget_nats:
        ranked = sorted(everything, key=lambda n: -alone[n])
        fewest = _fewest(ranked, budget_nats, lambda some: cost(some)[0])
        kept, kl = _pruned(tuple(ranked[:fewest]), budget_nats, cost)
    found = {"kl": kl, "kl_all_low": kl_all_low, "kl_none_low": kl_none_low}
    return tuple(sorted(kept)), found | {"alone": tuple(alone), "evaluations": counted}


def _fewest(ranked: Sequence[int], budget_nats: float, cost: Callable) -> int:
    """How many of the ranking meet the budget, by bisection; all if none do."""
    too_few, enough = 0, len(ranked)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if cost(ranked[:middle]) <= budget_nats:
            enough = middle
        else:
            too_few = middle
    return enough


def _pruned(kept: tuple[int, ...], budget_nats: float, cost: Callable) -> tuple:
    """Drops the cheapest part again and again while the budget is met; (kept, its cost)."""
    (kl,) = cost(kept)
    while kept and kl <= budget_nats:
        fewer = [tuple(n for n in kept if n != part) for part in kept]
        costs = cost(*fewer)
        cheapest = min(range(len(fewer)), key=lambda i: costs[i])
        if costs[cheapest] > budget_nats:
            break
        kept, kl = fewer[cheapest], costs[cheapest]
    return kept, kl
