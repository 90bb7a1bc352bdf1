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
    """The fewest kept layers that were found: add by each layer's own cost, then drop in reverse.

    Costs interact, so the set is not proved smallest; no single one of its layers can be dropped.
    """
    whole = policy_of(base, low, (), layers)
    one_low = [policy_of(base, low, _others(n, layers), layers) for n in range(layers)]
    kl_all_low, *alone = measure([whole, *one_low])
    evaluations = 1 + layers
    ranked = sorted(range(layers), key=lambda n: -alone[n])
    kept, kl, low_end, high_end = (), kl_all_low, 0, layers
    if kl > budget_nats:
        while high_end - low_end > 1:  # fewest of the ranking that meet the budget
            middle = (low_end + high_end) // 2
            (found,) = measure([policy_of(base, low, ranked[:middle], layers)])
            evaluations += 1
            low_end, high_end = (low_end, middle) if found <= budget_nats else (middle, high_end)
        kept = tuple(ranked[:high_end])
        (kl,) = measure([policy_of(base, low, kept, layers)])
        evaluations += 1
        for layer in reversed(kept):
            fewer = tuple(n for n in kept if n != layer)
            (found,) = measure([policy_of(base, low, fewer, layers)])
            evaluations += 1
            if found <= budget_nats:
                kept, kl = fewer, found
    return KvLayers(
        low, tuple(sorted(kept)), kl, kl_all_low, budget_nats, tuple(alone), evaluations
    )


def _others(layer: int, layers: int) -> list[int]:
    return [n for n in range(layers) if n != layer]
