"""The engine's errors beside a study's: as declared or not, and which choice they are made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.ablation.evaluate import Cost
from experiments.align import sites
from experiments.arithmetic import ATTENTION_SITES, MATRIX_CORES
from greta_jax.precision import Policy, Rule

DECLARED = "as declared"
"""Name of the policy that computes as the engine says it does."""

ONE_BIT = 2.0
"""Choices of precision come in bits: an error that has lost one against its declaration departs."""

MOST = 0.5
"""Share of an error's energy from which on it is mostly one choice's."""


def policy(precision: Mapping[str, Mapping]) -> Policy:
    """The oracle that computes as an engine declares of each site that it stores."""
    rules = []
    for site, said in precision.items():
        changes = [("compute", said["accumulate"]), ("activation", said["store"])]
        changes += [("kv", said["store"])]
        sites_ruled = (site,)
        if site == "attn.out":  # Scores and probabilities stay in its kernel's registers.
            sites_ruled = ATTENTION_SITES
            operand = said.get("operand")
            changes += [("probs", operand), ("order", MATRIX_CORES[operand])] if operand else []
        rules.append(Rule(tuple(changes), sites_ruled))
    exact = dict.fromkeys(("weight", "activation", "kv", "compute"), "float32")
    return Policy(DECLARED, **exact, exp="polynomial", rules=tuple(rules))


@dataclass(frozen=True)
class SiteRow:
    """One site, over all layers and prompts, in units of the tensor's rms.

    choice: the deviation of the study whose own tensors come nearest to the engine's. share: of the
    energy of the engine's error, what goes away if the choice's tensor is the reference; 1 if the
    engine holds what the choice computes, about 0 if the two have nothing in common.
    """

    site: str
    engine: float
    declared: float
    choice: str
    share: float

    @property
    def over_declared(self) -> float | None:
        return self.engine / self.declared if self.declared else None

    @property
    def departs(self) -> bool:
        return self.engine >= ONE_BIT * self.declared > 0 or self.engine > self.declared == 0

    @property
    def answer(self) -> str:
        if not self.engine:
            return "exact"
        what = "departs" if self.departs else "as declared"
        if self.share > MOST:
            return f"{what}: {self.choice}"
        return f"{what}, unexplained" if self.departs else what


def rows(costs: Mapping[str, Mapping[str, Cost]], engine: Mapping[str, Cost]) -> list[SiteRow]:
    """Every site of the engine. costs: variant -> prompt -> cost, DECLARED among them."""
    found = []
    stored = {site for cost in engine.values() for _, site in cost.sites}
    for site in (site for site in sites.SITES if site in stored):
        energy = _energy(site, engine, engine, lambda cost, place: cost.sites[place].rms)
        declared = _energy(site, engine, costs[DECLARED], lambda cost, place: cost.sites[place].rms)
        left = {
            name: _energy(site, engine, by_prompt, lambda cost, place: cost.distance[place])
            for name, by_prompt in costs.items()
            if name != DECLARED
        }
        choice = min(left, key=left.__getitem__) if left and energy else ""
        share = 1 - left[choice] / energy if choice and np.isfinite(energy) else 0.0
        found.append(SiteRow(site, energy**0.5, declared**0.5, choice, share))
    return found


def _energy(
    site: str, engine: Mapping[str, Cost], costs: Mapping[str, Cost], size: Callable
) -> float:
    """Mean square over layers and prompts, each in units of the reference tensor's."""
    squares = [
        (size(costs[prompt], place) / found.signal) ** 2
        for prompt, own in engine.items()
        for place, found in own.sites.items()
        if place[1] == site and found.signal
    ]
    return float(np.mean(squares)) if squares else 0.0


def sentences(found: Sequence[SiteRow], engine: Mapping[str, Cost]) -> list[str]:
    """What the engine costs, what its error is made of, and what is left unexplained."""
    kl_T = np.concatenate([cost.kl_T for cost in engine.values()])
    said = [f"engine: {kl_T.mean():.3g} nats a token, {kl_T.max():.3g} at most."]
    inexact = [row for row in found if row.engine]
    mostly: dict[str, list[SiteRow]] = {}
    for row in inexact:
        if row.share > MOST:
            mostly.setdefault(row.choice, []).append(row)
    for choice, here in sorted(mostly.items(), key=lambda item: -len(item[1])):
        shares = [row.share for row in here]
        where = f"at {len(here)} of {len(inexact)} sites" if len(here) > 6 else f"at {_names(here)}"
        said.append(
            f"{choice} makes most of the engine's error {where}: {min(shares):.0%} to "
            f"{max(shares):.0%} of its energy."
        )
    departing = [row for row in inexact if row.departs]
    if not departing:
        largest = max((row.over_declared or 0.0 for row in inexact), default=0.0)
        said.append(
            f"no site departs from what the engine declares: its errors are at most {largest:.3g} "
            "times those of an oracle that computes as declared."
        )
    if explained := [row for row in departing if row.share > MOST]:
        said.append(f"departs from its declaration, explained: {_names(explained, True)}.")
    if lost := [row for row in departing if row.share <= MOST]:
        said.append(
            "departs from its declaration, and no choice of this study explains it: "
            f"{_names(lost)}."
        )
    return said


def _names(found: Sequence[SiteRow], with_choice: bool = False) -> str:
    return ", ".join(f"{r.site} ({r.choice})" if with_choice else r.site for r in found)
