"""Which ops moved a margin: local errors times the gradient of the margin at their sites.

The margin of two tokens at one position moves, to first order, by the sum over all sites of local
error times gradient. Layers that were not judged count as one op, from the residual stream that
entered them to the one that left. The same gradients carry every op's floor to the margin.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from experiments.align import compare, metrics, sites, trace
from experiments.align.patterns import ranges
from experiments.align.slabs import grew
from experiments.align.tokens import Flip, Tokens
from experiments.align.tokens import compare as compare_tokens
from experiments.arithmetic import OracleArithmetic
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


def attribute(
    ops: OracleArithmetic,
    ref: trace.Trace,
    got: trace.Trace,
    judged: Sequence[int],
    position: int,
    pair: tuple[int, int],
    with_floor: bool,
) -> Attribution:
    """Attribution of the margin of `pair` at `position`; `judged` are the layers captured whole.

    Of the cache, the error of the slot that each token appended is counted, and every later change
    of a slot by what the tokens that read it since then make of it.
    """
    ref_TV, got_TV = (np.asarray(side.rows(sites.NO_LAYER, "logits")) for side in (ref, got))
    cotangent_TV = np.zeros(ref_TV.shape)
    cotangent_TV[position, list(pair)] = 1.0, -1.0
    margin, moved = (
        float(row[position, pair[0]]) - float(row[position, pair[1]]) for row in (ref_TV, got_TV)
    )
    found, squares = [], 0.0
    for part in gradients(ops.fp64, ref.run.token_ids_T, cotangent_TV):
        found += _contributions(ops, got, judged, part)
        if with_floor:
            squares += _floor_squared(ops, ref, part)
    # Hoeffding: a sum of independent errors of at most b_i exceeds this with chance FAILURE.
    floor = math.sqrt(2 * math.log(2 / FAILURE) * squares) if with_floor else None
    return Attribution(position, *pair, margin, moved - margin, tuple(found), floor)


def _contributions(ops, got: trace.Trace, judged, part: LayerGradients) -> list[Contribution]:
    if part.layer != sites.NO_LAYER and part.layer not in judged:
        return _of_a_run_of_layers(ops, got, judged, part)
    found = []
    for site, gradient in part.by_site.items():
        if (part.layer, site) in got:
            moved = _dot(gradient, _local(ops, got, part.layer, site))
            if site in KV_SITES:
                moved += _overwritten(got.rows(part.layer, site), partial(part.read_from, site))
            found.append(Contribution(part.layer, site, moved))
    return found


def _overwritten(slabs: compare.Rows, read_from: Callable[[int], np.ndarray]) -> float:
    """What changes of earlier tokens' slots did through the tokens that read them changed."""
    moved = 0.0
    for step in range(1, len(slabs)):
        if not grew(slabs[step - 1], slabs[step]):
            change_SKH = metrics.difference(slabs[step][:step], slabs[step - 1])
            moved += _dot(read_from(step)[:step], change_SKH)
    return moved


def _dot(gradient: np.ndarray, error: np.ndarray) -> float:
    """Only where the margin depends on it: a NaN that it does not read is not its cause."""
    return float(np.sum(np.where(gradient != 0, gradient * error, 0.0)))


def _local(ops: OracleArithmetic, got: trace.Trace, layer: int, site: str) -> np.ndarray:
    rows, right = got.rows(layer, site), ops.op64(layer, site, ops.inputs(got, layer, site))
    if site in KV_SITES:
        rows, right = ([slab[-1] for slab in slabs] for slabs in (rows, list(right)))
    if sites.SHAPES[site].endswith("NS"):
        return _square([metrics.difference(*pair) for pair in zip(rows, right, strict=True)])
    return metrics.difference(np.asarray(rows), np.asarray(right))


def _square(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of as many slots as were live, with nothing in the others."""
    S = len(rows)
    return np.stack([np.pad(row_NS, ((0, 0), (0, S - row_NS.shape[1]))) for row_NS in rows])


def _of_a_run_of_layers(ops, got: trace.Trace, judged, part: LayerGradients) -> list[Contribution]:
    """The layers from the last judged one up to this, if this is the last of them."""
    after, last = part.layer + 1, part.layer
    if after < ops.layers and after not in judged:
        return []
    first = max((layer + 1 for layer in judged if layer < last), default=0)
    before = (first - 1, "resid.out") if first else (sites.NO_LAYER, "embed")
    x_TD = np.asarray(got.rows(*before), np.float64)
    right_TD = through_layers(ops.fp64, got.run.token_ids_T, x_TD, range(first, last + 1))
    error_TD = metrics.difference(np.asarray(got.rows(last, "resid.out")), right_TD)
    moved = _dot(part.by_site["resid.out"], error_TD)
    return [Contribution(first, "resid.out", moved, last)]


def through_layers(oracle: Oracle, token_ids, x_TD: np.ndarray, layers: range) -> np.ndarray:
    """The residual stream after `layers`, from `x_TD` before them."""
    run = oracle.begin(np.asarray(token_ids, np.int64), oracle.empty_cache(), Taps())
    run.x_TD = np.pad(x_TD, ((0, padding(len(x_TD))), (0, 0)))
    for layer in layers:
        oracle.run_layer(run, layer)
    return np.asarray(run.x_TD)[: len(x_TD)]


def _floor_squared(ops: OracleArithmetic, ref: trace.Trace, part: LayerGradients) -> float:
    """Sum over the stored sites of (gradient x bound)^2, at the oracle's own tensors."""
    here, total = _as_trace(ops, ref, part), 0.0
    for site, gradient in part.by_site.items():
        if site in ops.engine_precision:
            bound = ops.bounds(here, part.layer, site)
            total += float(np.sum(np.where(gradient != 0, gradient * bound, 0.0) ** 2))
    return total


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


@dataclass(frozen=True)
class FlipVerdict:
    """`status`: EXPLAINED if rounding alone may close the oracle's margin, UNEXPLAINED if not,
    NOT_JUDGED after the first that is unexplained, or after an op that failed."""

    flip: Flip
    status: str
    why: str

    def sentence(self) -> str:
        flip = self.flip
        return (
            f"position {flip.position}: token {flip.got} instead of {flip.ref}, {self.status}: "
            f"{self.why}"
        )

    def record(self) -> dict:
        return asdict(self.flip) | {"status": self.status, "why": self.why}


EXPLAINED, UNEXPLAINED, NOT_JUDGED = "explained", "unexplained", "not judged"


@dataclass(frozen=True)
class NextTokens:
    """What one prompt's errors did to the next token, and why.

    `attributions` are of the flips that were judged, or of the position that came nearest to one.
    """

    tokens: Tokens
    flips: tuple[FlipVerdict, ...]
    attributions: tuple[Attribution, ...]

    def sentences(self) -> list[str]:
        found = [self.tokens.sentence(), *(flip.sentence() for flip in self.flips)]
        return found + [attribution.sentence() for attribution in self.attributions]

    def record(self) -> dict:
        return self.tokens.record() | {
            "flips": [flip.record() for flip in self.flips],
            "attributions": [attribution.record() for attribution in self.attributions],
        }


def next_tokens(
    ops: OracleArithmetic,
    ref: trace.Trace,
    got: trace.Trace,
    judged: Sequence[int],
    failed_at: int | None,
) -> NextTokens:
    """Judges every flip before `failed_at`, the position of the first op that failed, and the first
    in any case, up to the first that rounding does not explain."""
    place = sites.NO_LAYER, "logits"
    tokens = compare_tokens(np.asarray(ref.rows(*place)), np.asarray(got.rows(*place)))
    verdicts, found, over = [], [], ""
    for flip in tokens.flips:
        if not over and verdicts and failed_at is not None and failed_at <= flip.position:
            over = f"an op failed at position {failed_at}"
        if over:
            verdicts.append(FlipVerdict(flip, NOT_JUDGED, over))
            continue
        pair = flip.ref, flip.got
        found.append(attribute(ops, ref, got, judged, flip.position, pair, with_floor=True))
        margin, floor = flip.margin, found[-1].floor
        status = EXPLAINED if margin <= floor else UNEXPLAINED
        than = "within" if status == EXPLAINED else "above"
        why = f"the oracle's margin of {margin:.3g} is {than} what rounding may move, {floor:.3g}"
        verdicts.append(FlipVerdict(flip, status, why))
        if status == UNEXPLAINED:
            over = f"position {flip.position} is unexplained already"
    if not found:
        near = tokens.closest
        first, second = np.argsort(-np.asarray(ref.rows(*place)[near]), kind="stable")[:2]
        pair = int(first), int(second)
        found.append(attribute(ops, ref, got, judged, near, pair, with_floor=False))
    return NextTokens(tokens, tuple(verdicts), tuple(found))
