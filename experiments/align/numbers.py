"""Every number that verdicts rest on, for many tokens of one site at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from experiments.align import floors, metrics
from experiments.align.budget import budget
from experiments.align.metrics import Sizes
from experiments.align.split import Corner, split


@dataclass(frozen=True)
class Ablation:
    """The op in the engine's declared precision; `bound`: of its own error, if not the floor's."""

    declared: np.ndarray
    bound: np.ndarray | None = None


@dataclass(frozen=True)
class Storage:
    """A dtype, and what its numbers are multiplied by: in a cache a power of two a kv head, K1."""

    dtype: str
    scale: np.ndarray | float = 1.0


@dataclass(frozen=True)
class Case:
    """Tensors of one shape, of some tokens of one site: plain arrays, tokens first.

    `stored` is what the engine declares to store there; `floor` bounds |got - op64(in_got)| at
    the engine's declared precision, `closure_bound` |op64(in_ref) - ref| at the oracle's own.
    `corners` are the op at every mixture of both sides' inputs, if it has several. `declared` is
    the op in the precision that the engine declares, `bits` its result to the last bit, if
    modelled.
    """

    ref: np.ndarray
    got: np.ndarray
    op64_ref: np.ndarray
    op64_got: np.ndarray
    floor: floors.Floor
    closure_bound: np.ndarray
    stored: Storage
    corners: Mapping[Corner, np.ndarray] = field(default_factory=dict)
    declared: Ablation | None = None
    bits: np.ndarray | None = None


@dataclass(frozen=True)
class Broken:
    """Elements that are not finite though the op gives a number there: whether a tensor has any,
    the index of its first, and what it is."""

    any_T: np.ndarray
    at_TX: np.ndarray
    value_T: np.ndarray


@dataclass(frozen=True)
class Numbers:
    """One entry a token. `ratios` are |local| over the bound, elementwise.

    ratio: of |local| over the floor, which an ablation may have loosened. detects: the smallest
    error that would have been found in whichever element it lay. holds: every value is one of the
    declared dtype. held: what the engine stored; right: what it should have.
    """

    total: Sizes
    local: Sizes
    propagated: Sizes
    floor: Sizes
    ratio: Sizes
    held: Sizes
    right: Sizes
    detects_T: np.ndarray
    closure_T: np.ndarray
    holds_T: np.ndarray
    broken: Broken
    ratios: np.ndarray
    ablation: Sizes | None = None
    ablation_ratio_T: np.ndarray | None = None
    bits_differ_T: np.ndarray | None = None
    through: Mapping[str, Sizes] = field(default_factory=dict)
    split_T: np.ndarray | None = None


def measure(case: Case) -> Numbers:
    """All of it, in fp64."""
    bound = np.broadcast_to(case.floor.array(), case.got.shape)
    parts = budget(case.ref, case.got, case.op64_ref, case.op64_got, case.closure_bound)
    ratios = floors.ratio(parts.local, bound)
    floor, ratio, more = bound, ratios, {}
    if case.declared is not None:
        ablation, over = _ablated(case, bound)
        more = {"ablation": metrics.sizes(ablation), "ablation_ratio_T": _largest(over)}
        if case.declared.bound is None and (over > 1.0).any():
            # The loosest source decides, but one in another order loosens nothing.
            floor = np.maximum(bound, ablation)
            ratio = floors.ratio(parts.local, floor)
    if case.bits is not None:
        differ = case.bits.astype(case.got.dtype) != case.got
        more["bits_differ_T"] = _rows(differ).sum(axis=1)
    if case.corners:
        found = split(case.corners)
        more["through"] = {name: metrics.sizes(share) for name, share in found.shares.items()}
        more["split_T"] = _largest(found.residual_ratio)
    error = np.where(np.isnan(parts.local), np.inf, np.abs(parts.local))
    return Numbers(
        metrics.sizes(parts.total),
        metrics.sizes(parts.local),
        metrics.sizes(parts.propagated),
        metrics.sizes(floor),
        metrics.sizes(ratio),
        metrics.sizes(case.got.astype(np.float64)),
        metrics.sizes(case.op64_got),
        _largest(floor + error),
        _largest(parts.closure_ratio),
        holds_only(case.got, case.stored),
        _broken(case.got, case.op64_got),
        ratios,
        **more,
    )


def _rows(array: np.ndarray) -> np.ndarray:
    return array.reshape(len(array), -1)


def _largest(array: np.ndarray) -> np.ndarray:
    return _rows(array).max(axis=1, initial=0.0)


def _ablated(case: Case, bound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The declared precision's own error, and that over its bound."""
    error = np.abs(metrics.difference(case.declared.declared, case.op64_got))
    ablation = np.where(np.isfinite(case.op64_got), error, 0.0)
    own_bound = case.declared.bound
    return ablation, floors.ratio(ablation, bound if own_bound is None else own_bound)


def holds_only(array: np.ndarray, stored: Storage) -> np.ndarray:
    """Whether every value is one that is stored, whatever wider type it is handed over in."""
    with np.errstate(over="ignore"):
        array = array / np.asarray(stored.scale, array.dtype)
        back = array.astype(stored.dtype).astype(array.dtype)
    return _rows((back == array) | (np.isnan(back) & np.isnan(array))).all(axis=1)


def _broken(got: np.ndarray, op64_got: np.ndarray) -> Broken:
    broken_TX = _rows(~np.isfinite(got) & ~(np.isinf(got) & (got == op64_got)))
    first_T = broken_TX.argmax(axis=1)
    at_TX = np.stack(np.unravel_index(first_T, got.shape[1:]), axis=1)
    value_T = np.take_along_axis(_rows(got), first_T[:, None], axis=1)[:, 0]
    return Broken(broken_TX.any(axis=1), at_TX, value_T)


def concatenated(parts: Sequence[Sizes]) -> Sizes:
    """Those of the tokens of all parts, in order."""
    names = Sizes.__dataclass_fields__
    return Sizes(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
