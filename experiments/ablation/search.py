"""Which layers must keep a better KV cache, for a stated budget: greedy, then pruned."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.ablation.factors import Factor, combined
from greta_jax.precision import Policy

MeasureAll = Callable[[Sequence[Policy]], list[float]]
"""Mean KL in nats of each policy."""


@dataclass(frozen=True)
class KvLayers:
    """The answer: `kept` layers at the better dtype cost `kl` nats; `alone` is each layer's own."""

    low: Factor
    kept: tuple[int, ...]
    kl: float
    kl_all_low: float
    budget_nats: float
    alone: tuple[float, ...]
    evaluations: int

    @property
    def met(self) -> bool:
        return self.kl <= self.budget_nats

    def sentence(self) -> str:
        kept = ", ".join(map(str, self.kept)) or "none"
        layers = len(self.alone)
        if not self.met:
            return (
                f"{self.low}: even with every layer kept the cost is {self.kl:.3g} nats, above "
                f"{self.budget_nats:g}."
            )
        return (
            f"{self.low} in {layers - len(self.kept)} of {layers} layers costs {self.kl:.3g} nats "
            f"(budget {self.budget_nats:g}; {self.kl_all_low:.3g} if in all); kept: {kept}."
        )


def policy_of(base: Policy, low: Factor, kept: Sequence[int], layers: int) -> Policy:
    """`low` in every layer but those kept."""
    chosen = [layer for layer in range(layers) if layer not in set(kept)]
    at = [Factor(low.field, low.value, low.sites, layer, layer) for layer in chosen]
    return combined(base, at)


def kv_layers(
    base: Policy, low: Factor, layers: int, budget_nats: float, measure: MeasureAll
) -> KvLayers:
    """The fewest kept layers that were found: added by each layer's own cost, then dropped again.

    Costs interact, so the set is not proved smallest; no single one of its layers can be dropped.
    """
    counted = 0

    def cost(*sets: Sequence[int]) -> list[float]:
        nonlocal counted
        counted += len(sets)
        return measure([policy_of(base, low, kept, layers) for kept in sets])

    alone_sets = [[n for n in range(layers) if n != layer] for layer in range(layers)]
    kl_all_low, *alone = cost((), *alone_sets)
    kept: tuple[int, ...] = ()
    kl = kl_all_low
    if kl > budget_nats:
        ranked = sorted(range(layers), key=lambda n: -alone[n])
        fewest = _fewest(ranked, budget_nats, lambda some: cost(some)[0])
        kept, kl = _pruned(tuple(ranked[:fewest]), budget_nats, cost)
    kept = tuple(sorted(kept))
    return KvLayers(low, kept, kl, kl_all_low, budget_nats, tuple(alone), counted)


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
    """Drops the cheapest layer again and again while the budget is met; (kept, its cost)."""
    (kl,) = cost(kept)
    while kept and kl <= budget_nats:
        fewer = [tuple(n for n in kept if n != layer) for layer in kept]
        costs = cost(*fewer)
        cheapest = min(range(len(fewer)), key=lambda i: costs[i])
        if costs[cheapest] > budget_nats:
            break
        kept, kl = fewer[cheapest], costs[cheapest]
    return kept, kl
