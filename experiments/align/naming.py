"""Naming an error: which known mistake computes exactly what the engine computed.

A mistake is named only if what it would have computed on the captured inputs lies within the floor
of what the engine did compute, and everything else, the op as it should be included, is at least
`MARGIN` times further away. The nearest explanation alone is no finding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from experiments.align import floors, metrics

Rows = Sequence[np.ndarray]
MARGIN = 10
"""Issue 6, item 4: the runner-up is at least this many times worse."""
AS_IT_SHOULD_BE = "the op as it should be"


@dataclass(frozen=True)
class Explanation:
    """What one mistake computes, a row a token, and the rounding that it allows for.

    NaN marks elements of which it says nothing, infinity those that it leaves not finite. `shows`
    is the input on which it differs from others.
    """

    rows: Rows
    floor: Rows
    shows: str = ""


@dataclass(frozen=True)
class Naming:
    """`named` if exactly one explanation holds; `candidates` if several cannot be told apart.

    `residuals` are the largest |got - explanation| over its floor; `unasked` are mistakes whose
    inputs were not captured or that cannot show here; `next_step` is what to run now.
    """

    named: str = ""
    candidates: tuple[str, ...] = ()
    residuals: Mapping[str, float] = field(default_factory=dict)
    unasked: tuple[str, ...] = ()
    next_step: str = ""

    def sentence(self) -> str:
        if self.named:
            best, (other, worse) = self.residuals[self.named], self.runner_up()
            return (
                f"named: {self.named} ({best:.2g} x its floor; next is {other}, {worse:.2g} x), "
                f"of {len(self.residuals) - 1} known mistakes asked"
            )
        if self.candidates:
            return f"cannot be told apart: {', '.join(self.candidates)}; {self.next_step}"
        nearest = self._nearest()
        seen = f"; nearest is {nearest[0]}, {nearest[1]:.2g} x the floor" if nearest else ""
        asked = max(len(self.residuals) - 1, 0)
        unasked = f" ({len(self.unasked)} more could not be asked)" if self.unasked else ""
        return f"none of the {asked} known mistakes{unasked}{seen}; next: {self.next_step}"

    def record(self) -> dict:
        """Plain values for JSON."""
        return {
            "named": self.named or None,
            "candidates": list(self.candidates),
            "residuals_over_floor": dict(sorted(self.residuals.items(), key=lambda r: r[1])),
            "unasked": list(self.unasked),
            "next_step": self.next_step,
            "sentence": self.sentence(),
        }

    def runner_up(self) -> tuple[str, float]:
        """The explanation that comes nearest beside the one that is named, and its residual."""
        others = {name: r for name, r in self.residuals.items() if name != self.named}
        return min(others.items(), key=lambda r: r[1])

    def _nearest(self) -> tuple[str, float] | None:
        return min(self.residuals.items(), key=lambda r: r[1], default=None)


def residual(got: Rows, explanation: Explanation) -> float:
    """The largest |got - explained| over its floor; infinite if it explains no finite element: that
    nothing is finite, any mistake could have done."""
    worst, explained = 0.0, 0
    for row, rows, floor in zip(got, explanation.rows, explanation.floor, strict=True):
        if np.shape(row) != np.shape(rows):
            return float("inf")
        said, broken = ~np.isnan(rows), np.isposinf(rows)
        explained += int(np.isfinite(rows).sum())
        error = metrics.difference(row, np.asarray(rows))
        ratio = floors.ratio(np.where(broken & ~np.isfinite(row), 0.0, error), floor)
        worst = max(worst, float(ratio[said].max(initial=0.0)))
    return worst if explained else float("inf")


def name(
    got: Rows,
    right: Explanation,
    mistakes: Mapping[str, Explanation],
    unasked: Sequence[str] = (),
    next_step: str = "",
) -> Naming:
    """Which mistake `got` is. `right` is the op as it should be: if it holds, nothing is."""
    residuals = {AS_IT_SHOULD_BE: residual(got, right)}
    residuals |= {mistake: residual(got, said) for mistake, said in mistakes.items()}
    return decide(residuals, {m: said.shows for m, said in mistakes.items()}, unasked, next_step)


def decide(
    residuals: Mapping[str, float],
    shows: Mapping[str, str],
    unasked: Sequence[str] = (),
    next_step: str = "",
) -> Naming:
    """The rule alone, on residuals over floors."""
    ordered = sorted(residuals, key=lambda mistake: residuals[mistake])
    best = residuals[ordered[0]]
    near = [m for m in ordered if residuals[m] <= max(1.0, MARGIN * best)]
    facts = dict(residuals=residuals, unasked=tuple(unasked))
    if best > 1.0 or AS_IT_SHOULD_BE in near:
        return Naming(next_step=next_step, **facts)
    if len(near) == 1:
        return Naming(named=near[0], **facts)
    separators = [f"{mistake} shows {shows[mistake]}" for mistake in near if shows.get(mistake)]
    apart = "; ".join(separators) or "no token of this run separates them: run a longer prompt"
    return Naming(candidates=tuple(near), next_step=apart, **facts)


def agree(first: Naming, others: Sequence[Naming], next_step: str = "") -> Naming:
    """Tries the candidates of `first` where the same op failed in other places too.

    A mistake must hold wherever it can be asked. One that could be asked there and does not hold
    is dropped; if that leaves one, it is named. `next_step`: what to run if it leaves none.
    """
    if not first.candidates:
        return first
    residuals = dict(first.residuals)
    for other in others:
        for mistake in first.candidates:
            residuals[mistake] = max(residuals[mistake], other.residuals.get(mistake, 0.0))
    shows = dict.fromkeys(first.candidates, "")
    again = decide(residuals, shows, first.unasked, next_step)
    return replace(again, next_step=first.next_step) if again.candidates else again
