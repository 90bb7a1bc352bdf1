"""Which ops moved a margin: local errors times the gradient of the margin at their sites.

The margin of two tokens at one position moves, to first order, by the sum over all sites of local
error times gradient. Layers that were not judged count as one op, from the residual stream that
entered them to the one that left. The same gradients carry every op's floor to the margin.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.align import compare, metrics, sites, trace
from experiments.align.patterns import ranges
from experiments.align.slabs import grew
from experiments.arithmetic import OracleArithmetic
from experiments.token_blocks import square
from greta_jax.adjoint import LayerGradients, gradients
from greta_jax.graph import KV_SITES
from greta_jax.model import Oracle, padding
from greta_jax.precision import unit_roundoff
from greta_jax.taps import Taps

FAILURE = unit_roundoff("float32")
"""Chance that honest rounding exceeds a propagated floor: no likelier than one in 2^24."""


@dataclass(frozen=True)
class Contribution:
    """What one op's own error did to the margin, or layers `layer` to `last`, unjudged, as one."""

    layer: int
    site: str
    margin: float
    last: int | None = None

    @property
    def name(self) -> str:
        if self.last is None:
            return sites.name(self.layer, self.site)
        return f"layers {ranges(range(self.layer, self.last + 1))}, not judged"


@dataclass(frozen=True)
class Attribution:
    """The change of logit[first] - logit[second] at one position, and where it came from.

    floor: how far rounding may move the margin, if roundings are independent (None: not asked).
    """

    position: int
    first: int
    second: int
    margin: float
    change: float
    contributions: tuple[Contribution, ...]
    floor: float | None

    @property
    def sum(self) -> float:
        return math.fsum(c.margin for c in self.contributions)

    @property
    def largest(self) -> tuple[Contribution, ...]:
        return tuple(sorted(self.contributions, key=lambda c: -abs(c.margin)))

    def sentence(self) -> str:
        shown = ", ".join(f"{c.name} {c.margin:+.2e}" for c in self.largest[:3])
        floor = "" if self.floor is None else f" (rounding may move it by {self.floor:.2e})"
        return (
            f"margin of {self.first} over {self.second} at position {self.position}: "
            f"{self.margin:.4g}, moved by {self.change:+.3e}{floor}; "
            f"ops account for {self.sum:+.3e}: {shown}"
        )

    def record(self) -> dict:
        """Plain values for JSON; contributions by size."""
        return {
            "position": self.position,
            "tokens": [self.first, self.second],
            "margin": self.margin,
            "change": self.change,
            "sum_of_contributions": self.sum,
            "floor": self.floor,
            "contributions": [
                {"layer": c.layer, "last_layer": c.last, "site": c.site, "margin": c.margin}
                for c in self.largest
            ],
        }


@dataclass(frozen=True)
class Margin:
    """logit[first] - logit[second] at one position."""

    position: int
    first: int
    second: int

    def of(self, side: trace.Trace) -> float:
        row_V = side.rows(sites.NO_LAYER, "logits")[self.position]
        return float(row_V[self.first]) - float(row_V[self.second])

    def cotangent(self, ref: trace.Trace) -> np.ndarray:
        cotangent_TV = np.zeros(np.shape(ref.rows(sites.NO_LAYER, "logits")))
        cotangent_TV[self.position, [self.first, self.second]] = 1.0, -1.0
        return cotangent_TV


def attribute(
    ops: OracleArithmetic,
    ref: trace.Trace,
    got: trace.Trace,
    judged: Sequence[int],
    margins: Sequence[Margin],
    with_floor: bool,
) -> list[Attribution]:
    """An attribution of each margin; `judged` are the layers captured whole.

    Of the cache, the error of the slot that each token appended is counted, and every later change
    of a slot by what the tokens that read it since then make of it.
    """
    found: list[list[Contribution]] = [[] for _ in margins]
    squares, here = [0.0] * len(margins), None
    cotangents = (margin.cotangent(ref) for margin in margins)
    for part in gradients(ops.fp64, ref.run.token_ids_T, cotangents):
        if part.of == 0:
            here = _Layer(ops, ref, got, judged, part)
        found[part.of] += here.contributions(part)
        if with_floor:
            squares[part.of] += here.floor_squared(part)
    # Hoeffding: a sum of independent errors of at most b_i exceeds this with chance FAILURE.
    chance = 2 * math.log(2 / FAILURE)
    attributions = []
    for margin, contributions, variance in zip(margins, found, squares, strict=True):
        value = margin.of(ref)
        floor = math.sqrt(chance * variance) if with_floor else None
        pair = margin.position, margin.first, margin.second
        moved = margin.of(got) - value
        attributions.append(Attribution(*pair, value, moved, tuple(contributions), floor))
    return attributions


class _Layer:
    """Errors and bounds at the sites of one layer: the same for every margin."""

    def __init__(self, ops, ref: trace.Trace, got: trace.Trace, judged, part: LayerGradients):
        self.ops, self.got, self.judged, self.layer = ops, got, judged, part.layer
        self.errors: dict[str, np.ndarray] = {}
        self.bounds: dict[str, np.ndarray] = {}
        self.changes: dict[str, list[tuple[int, np.ndarray]]] = {}
        self._own = _as_trace(ops, ref, part)

    def contributions(self, part: LayerGradients) -> list[Contribution]:
        if self.layer != sites.NO_LAYER and self.layer not in self.judged:
            return self._of_a_run_of_layers(part)
        found = []
        for site, gradient in part.by_site.items():
            if (self.layer, site) in self.got:
                if site not in self.errors:
                    self.errors[site] = _local(self.ops, self.got, self.layer, site)
                moved = _dot(gradient, self.errors[site])
                if site in KV_SITES:
                    moved += self._overwritten(site, part)
                found.append(Contribution(self.layer, site, moved))
        return found

    def _overwritten(self, site: str, part: LayerGradients) -> float:
        """What changes of earlier tokens' slots did through the tokens that read them changed."""
        if site not in self.changes:
            self.changes[site] = _changes(self.got.rows(self.layer, site))
        reads = ((change, part.read_from(site, step)[:step]) for step, change in self.changes[site])
        return sum(_dot(gradient, change) for change, gradient in reads)

    def floor_squared(self, part: LayerGradients) -> float:
        """Sum over the stored sites of (gradient x bound)^2, at the oracle's own tensors."""
        total = 0.0
        for site, gradient in part.by_site.items():
            if site in self.ops.engine_precision:
                if site not in self.bounds:
                    self.bounds[site] = self.ops.bounds(self._own, self.layer, site)
                at_most = gradient * self.bounds[site]
                total += float(np.sum(np.where(gradient != 0, at_most, 0.0) ** 2))
        return total

    def _of_a_run_of_layers(self, part: LayerGradients) -> list[Contribution]:
        """The layers from the last judged one up to this, if this is the last of them."""
        after, last = self.layer + 1, self.layer
        if after < self.ops.layers and after not in self.judged:
            return []
        first = max((layer + 1 for layer in self.judged if layer < last), default=0)
        if "resid.out" not in self.errors:
            before = (first - 1, "resid.out") if first else (sites.NO_LAYER, "embed")
            x_TD = np.asarray(self.got.rows(*before), np.float64)
            ids, run = self.got.run.token_ids_T, range(first, last + 1)
            right_TD = through_layers(self.ops.fp64, ids, x_TD, run)
            got_TD = np.asarray(self.got.rows(last, "resid.out"))
            self.errors["resid.out"] = metrics.difference(got_TD, right_TD)
        moved = _dot(part.by_site["resid.out"], self.errors["resid.out"])
        return [Contribution(first, "resid.out", moved, last)]


def _changes(slabs: compare.Rows) -> list[tuple[int, np.ndarray]]:
    """The steps that did more than append to a slab, with what they changed of earlier slots."""
    return [
        (step, metrics.difference(slabs[step][:step], slabs[step - 1]))
        for step in range(1, len(slabs))
        if not grew(slabs[step - 1], slabs[step])
    ]


def _dot(gradient: np.ndarray, error: np.ndarray) -> float:
    """Only where the margin depends on it: a NaN that it does not read is not its cause."""
    return float(np.sum(np.where(gradient != 0, gradient * error, 0.0)))


def _local(ops: OracleArithmetic, got: trace.Trace, layer: int, site: str) -> np.ndarray:
    rows, right = got.rows(layer, site), ops.op64(layer, site, ops.inputs(got, layer, site))
    if site in KV_SITES:
        rows, right = ([slab[-1] for slab in slabs] for slabs in (rows, list(right)))
    if sites.SHAPES[site].endswith("NS"):
        return square([metrics.difference(*pair) for pair in zip(rows, right, strict=True)])
    return metrics.difference(np.asarray(rows), np.asarray(right))


def through_layers(oracle: Oracle, token_ids, x_TD: np.ndarray, layers: range) -> np.ndarray:
    """The residual stream after `layers`, from `x_TD` before them."""
    run = oracle.begin(np.asarray(token_ids, np.int64), oracle.empty_cache(), Taps())
    run.x_TD = np.pad(x_TD, ((0, padding(len(x_TD))), (0, 0)))
    for layer in layers:
        oracle.run_layer(run, layer)
    return np.asarray(run.x_TD)[: len(x_TD)]


def _as_trace(ops: OracleArithmetic, ref: trace.Trace, part: LayerGradients) -> trace.Trace:
    """A layer's tensors as an engine that computed them would have left them."""
    rows: dict[tuple[int, str], compare.Rows] = {}
    for name, value in part.tensors.items():
        if name == "resid.in":
            reader = "final.norm" if part.layer == sites.NO_LAYER else "attn.norm"
            rows[ops.place_before(part.layer, reader)] = value
        elif name in KV_SITES:
            rows[part.layer, name] = [value[: t + 1] for t in range(len(value))]
        elif name in ops.engine_precision:
            rows[part.layer, name] = value
    return trace.Trace(ref.run, rows)
