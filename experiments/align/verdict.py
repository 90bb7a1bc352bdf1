"""The ladder of verdicts for one tensor: the first rung that fails is the verdict."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from experiments.align import floors, metrics
from experiments.align.budget import Budget, budget
from experiments.align.split import Split
from experiments.align.trace import Key


class Status(enum.StrEnum):
    """Rungs of the ladder, and what can be said of a tensor that passed or could not be judged."""

    EXACT = "exact"
    WITHIN_FLOOR = "within_floor"
    FUSED = "fused"
    MISSING = "missing"
    VACUOUS = "vacuous"
    INCONCLUSIVE = "inconclusive"
    ABOVE_FLOOR = "above_floor"
    STRUCTURAL = "structural"
    NONFINITE = "nonfinite"
    DTYPE = "dtype"
    SHAPE = "shape"


CLEAN = frozenset({Status.EXACT, Status.WITHIN_FLOOR})
UNDECIDED = frozenset({Status.MISSING, Status.VACUOUS, Status.INCONCLUSIVE})
FAILED = frozenset(
    {Status.ABOVE_FLOOR, Status.STRUCTURAL, Status.NONFINITE, Status.DTYPE, Status.SHAPE}
)
SEVERITY = {status: rank for rank, status in enumerate(Status)}


@dataclass(frozen=True)
class Ablation:
    """The op in the engine's declared precision; `bound`: of its own error, if not the floor's."""

    declared: np.ndarray
    bound: np.ndarray | None = None


@dataclass(frozen=True)
class Case:
    """Everything one verdict is made of: plain arrays, and what the engine declared.

    `stored` is the dtype the engine declares to store there; `floor` bounds |got - op64(in_got)| at
    the engine's declared precision, `closure_bound` |op64(in_ref) - ref| at the oracle's own.
    `split` divides the propagated error among the op's inputs, if it has several. `declared` is the
    op in the precision that the engine declares, `bits` its result to the last bit, if modelled.
    """

    key: Key
    ref: np.ndarray
    got: np.ndarray
    op64_ref: np.ndarray
    op64_got: np.ndarray
    floor: floors.Floor
    closure_bound: np.ndarray
    shape: tuple[int, ...]
    stored: str
    inputs_finite: bool
    split: Split | None = None
    declared: Ablation | None = None
    bits: np.ndarray | None = None


@dataclass(frozen=True)
class Judgement:
    """The verdict on one tensor of one token, with the numbers it rests on.

    `inherited` marks a non-finite tensor whose inputs were already non-finite: not this op's fault.
    `through` sizes what was propagated by each input. `detects` is the smallest error that would
    have been found in whichever element it lay; `signal` the rms of the right tensor.
    """

    key: Key
    status: Status
    reason: str
    total: metrics.Size | None = None
    local: metrics.Size | None = None
    propagated: metrics.Size | None = None
    floor_max: float | None = None
    ratio_max: float | None = None
    ratio_at: tuple[int, ...] | None = None
    closure_ratio: float | None = None
    through: Mapping[str, metrics.Size] = field(default_factory=dict)
    split_closure_ratio: float | None = None
    detects: float | None = None
    signal: float | None = None
    ablation: metrics.Size | None = None
    ablation_ratio: float | None = None
    bits_differ: int | None = None
    inherited: bool = False

    @property
    def blames_this_op(self) -> bool:
        return self.status in FAILED and not self.inherited


def _holds_only(array: np.ndarray, dtype: str) -> bool:
    """Whether every value is one of `dtype`, whatever wider type it is handed over in."""
    with np.errstate(over="ignore"):
        return np.array_equal(array, array.astype(dtype).astype(array.dtype), equal_nan=True)


def _local_failure(parts: Budget, op64_got: np.ndarray, floor: np.ndarray) -> Status:
    """Structural if the local error is nearer, in octaves, to the signal than to the floor."""
    error, signal, least = (metrics.rms(a) for a in (parts.local, op64_got, floor))
    return Status.STRUCTURAL if error**2 >= least * signal else Status.ABOVE_FLOOR


def _floors(case: Case) -> tuple[np.ndarray, np.ndarray | None, float]:
    """The floor, the declared precision's own error, and the largest of that over its bound.

    The loosest source decides, but an ablation in another order than the engine's loosens nothing.
    """
    bound = np.broadcast_to(case.floor.array(), case.shape)
    if case.declared is None:
        return bound, None, 0.0
    error = np.abs(metrics.difference(case.declared.declared, case.op64_got))
    ablation = np.where(np.isfinite(case.op64_got), error, 0.0)
    own_bound = case.declared.bound
    if own_bound is None:
        ratio = floors.ratio(ablation, bound)
        return np.maximum(bound, ablation), ablation, float(ratio.max(initial=0.0))
    return bound, ablation, float(floors.ratio(ablation, own_bound).max(initial=0.0))


def judge(case: Case) -> Judgement:
    """Climbs the ladder shape, dtype, non-finite, closure, numeric for one tensor."""
    got = case.got
    if got.shape != case.shape or case.ref.shape != case.shape:
        reason = f"expected {case.shape}, reference {case.ref.shape}, got {got.shape}"
        return Judgement(case.key, Status.SHAPE, reason)
    if not _holds_only(got, case.stored):
        reason = f"declared {case.stored}, but some values of the {got.dtype} are not {case.stored}"
        return Judgement(case.key, Status.DTYPE, reason)
    floor, ablation, ablation_ratio = _floors(case)
    parts = budget(case.ref, got, case.op64_ref, case.op64_got, case.closure_bound)
    ratio = floors.ratio(parts.local, floor)
    worst = metrics.size(ratio)
    numbers = dict(
        total=metrics.size(parts.total),
        local=metrics.size(parts.local),
        propagated=metrics.size(parts.propagated),
        floor_max=float(np.max(floor, initial=0.0)),
        ratio_max=worst.max,
        ratio_at=worst.at,
        closure_ratio=parts.closure_ratio,
        detects=float(np.max(floor + np.nan_to_num(np.abs(parts.local), nan=np.inf), initial=0.0)),
        signal=metrics.rms(case.op64_got),
    )
    if ablation is not None:
        numbers["ablation"] = metrics.size(ablation)
        numbers["ablation_ratio"] = ablation_ratio
    if case.bits is not None:
        numbers["bits_differ"] = int((case.bits.astype(got.dtype) != got).sum())
    if case.split:
        numbers["through"] = {n: metrics.size(s) for n, s in case.split.shares.items()}
        numbers["split_closure_ratio"] = case.split.closure_ratio
    if (broken := ~np.isfinite(got) & ~(np.isinf(got) & (got == case.op64_got))).any():
        first = tuple(int(i) for i in np.argwhere(broken)[0])
        inputs = "clean" if case.inputs_finite else "already not finite"
        reason = f"first {got[first]} at {first}, inputs {inputs}"
        inherited = not case.inputs_finite
        return Judgement(case.key, Status.NONFINITE, reason, inherited=inherited, **numbers)
    if not parts.closes:
        reason = f"the oracle does not replay itself: {parts.closure_ratio:.3g} x its bound"
        return Judgement(case.key, Status.INCONCLUSIVE, reason, **numbers)
    if case.split and case.split.closure_ratio > 1.0:
        names = ", ".join(case.split.shares)
        reason = f"what came through {names} does not add up: {case.split.closure_ratio:.3g} x fp64"
        return Judgement(case.key, Status.INCONCLUSIVE, reason, **numbers)
    if worst.max > 1.0:
        status = _local_failure(parts, case.op64_got, floor)
        reason = f"local error {worst.max:.3g} x the floor at {worst.at}"
        return Judgement(case.key, status, reason, **numbers)
    if numbers.get("ablation_ratio", 0.0) > 1.0:
        reason = (
            f"sources of the floor disagree: at the declared precision the op itself errs by "
            f"{numbers['ablation_ratio']:.3g} x its bound, so the bound is wrong"
        )
        return Judgement(case.key, Status.INCONCLUSIVE, reason, **numbers)
    status = Status.EXACT if numbers["local"].max == 0.0 else Status.WITHIN_FLOOR
    return Judgement(case.key, status, "", **numbers)


def local_ratio(case: Case) -> np.ndarray:
    """|got - op64(in_got)| over the floor; infinite where the shapes do not even pair."""
    if case.got.shape != case.op64_got.shape:
        return np.full(case.shape, np.inf)
    local = metrics.difference(case.got, case.op64_got)
    return floors.ratio(local, case.floor.array())


def worst(judgements: Sequence[Judgement]) -> Judgement:
    """The most severe judgement, the largest ratio to the floor among equals."""
    return max(judgements, key=lambda j: (SEVERITY[j.status], j.ratio_max or 0.0))
