"""The ladder of verdicts for each tensor: the first rung that fails is the verdict."""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from experiments.align import metrics
from experiments.align.numbers import Numbers
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


@dataclass(frozen=True, slots=True)
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


def judge(
    keys: Sequence[Key],
    numbers: Numbers,
    stored: tuple[str, np.dtype],
    inputs_finite: Callable[[int], bool],
) -> list[Judgement]:
    """Climbs the ladder dtype, non-finite, closure, numeric for each token.

    `stored`: the dtype that was declared, and the one that was handed over. `inputs_finite`:
    whether what the op read at a position was.
    """
    declared, given = stored
    structural_T = _is_structural(numbers)
    found = []
    for t, key in enumerate(keys):
        if not numbers.holds_T[t]:
            reason = f"declared {declared}, but some values of the {given} are not {declared}"
            found.append(Judgement(key, Status.DTYPE, reason))
        elif numbers.broken.any_T[t]:
            found.append(_not_finite(key, numbers, t, inputs_finite(key.position)))
        else:
            status, reason = _doubt(numbers, t) or _numeric(numbers, t, structural_T[t])
            found.append(Judgement(key, status, reason, **_fields(numbers, t)))
    return found


def wrong_shape(key: Key, shape: tuple[int, ...], ref: np.ndarray, got: np.ndarray) -> Judgement:
    """The lowest rung: nothing can be measured."""
    reason = f"expected {shape}, reference {ref.shape}, got {got.shape}"
    return Judgement(key, Status.SHAPE, reason)


def _not_finite(key: Key, numbers: Numbers, t: int, inputs_finite: bool) -> Judgement:
    at = tuple(numbers.broken.at_TX[t].tolist())
    inputs = "clean" if inputs_finite else "already not finite"
    reason = f"first {numbers.broken.value_T[t]} at {at}, inputs {inputs}"
    fields = _fields(numbers, t)
    return Judgement(key, Status.NONFINITE, reason, inherited=not inputs_finite, **fields)


def _doubt(numbers: Numbers, t: int) -> tuple[Status, str] | None:
    """Why the numbers of this token cannot be trusted, whatever they say of the engine."""
    if (closure := numbers.closure_T[t]) > 1:
        return Status.INCONCLUSIVE, f"the oracle does not replay itself: {closure:.3g} x its bound"
    if numbers.split_T is not None and (residual := numbers.split_T[t]) > 1:
        names = ", ".join(numbers.through)
        reason = f"what came through {names} does not add up: {residual:.3g} x fp64"
        return Status.INCONCLUSIVE, reason
    return None


def _numeric(numbers: Numbers, t: int, structural: bool) -> tuple[Status, str]:
    ratio = numbers.ratio.at(t)
    if ratio.max > 1:
        status = Status.STRUCTURAL if structural else Status.ABOVE_FLOOR
        return status, f"local error {ratio.max:.3g} x the floor at {ratio.at}"
    if numbers.ablation_ratio_T is not None and (over := numbers.ablation_ratio_T[t]) > 1:
        return Status.INCONCLUSIVE, (
            f"sources of the floor disagree: at the declared precision the op itself errs by "
            f"{over:.3g} x its bound, so the bound is wrong"
        )
    return Status.EXACT if numbers.local.max_T[t] == 0 else Status.WITHIN_FLOOR, ""


def _is_structural(numbers: Numbers) -> np.ndarray:
    """Where a local error is nearer, in octaves, to the signal than to the floor."""
    return numbers.local.rms_T**2 >= numbers.floor.rms_T * numbers.right.rms_T


def _fields(numbers: Numbers, t: int) -> dict:
    """What a judgement says of one token."""
    ratio = numbers.ratio.at(t)
    fields = {name: getattr(numbers, name).at(t) for name in ("total", "local", "propagated")}
    fields |= {"floor_max": float(numbers.floor.max_T[t]), "ratio_max": ratio.max}
    fields |= {"ratio_at": ratio.at, "closure_ratio": float(numbers.closure_T[t])}
    fields |= {"detects": float(numbers.detects_T[t]), "signal": float(numbers.right.rms_T[t])}
    if numbers.ablation is not None:
        fields["ablation"] = numbers.ablation.at(t)
        fields["ablation_ratio"] = float(numbers.ablation_ratio_T[t])
    if numbers.bits_differ_T is not None:
        fields["bits_differ"] = int(numbers.bits_differ_T[t])
    if numbers.split_T is not None:
        fields["through"] = {name: sizes.at(t) for name, sizes in numbers.through.items()}
        fields["split_closure_ratio"] = float(numbers.split_T[t])
    return fields


def worst(judgements: Sequence[Judgement]) -> Judgement:
    """The most severe judgement, the largest ratio to the floor among equals."""
    return max(judgements, key=lambda j: (SEVERITY[j.status], j.ratio_max or 0.0))
