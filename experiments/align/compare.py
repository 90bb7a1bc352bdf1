"""Judges every tensor of a trace against the oracle's, with both sides' arithmetic handed in."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from experiments.align import sites, split, trace, vacuity, verdict
from experiments.align.errors import InputMissing
from experiments.align.numbers import Storage
from experiments.align.parts import RoundingModel, Rows, Tensors, measured
from experiments.align.verdict import Judgement, Status


@dataclass(frozen=True)
class Arithmetic:
    """The oracle's operations as plain callables over one side's trace.

    inputs(trace, layer, site): what that op read, by name; raises InputMissing.
    op64(layer, site, mixtures): the op in fp64 on each of several inputs, a row for each token.
    floor(layer, site, inputs): by source, bounds of |got - op64(inputs)| at the engine's precision.
    closure(layer, site, inputs): bounds of |op64(inputs) - ref| at the oracle's precision.
    through(site): the inputs among which a propagated error is divided; none or several.
    declared(layer, site, inputs): the op in the engine's declared precision, or None.
    bits(layer, site, inputs): the op to its last bit in the engine's declared order, or None.
    spell(token_id): its entry in the vocabulary; empty if that is not known.
    """

    inputs: Callable[[trace.Trace, int, str], Mapping[str, object]]
    op64: Callable[[int, str, Sequence[Mapping]], Sequence[Rows]]
    floor: Callable[[int, str, Mapping], Mapping[str, Rows]]
    closure: Callable[[int, str, Mapping], Rows]
    through: Callable[[str], Sequence[str]] = lambda site: ()
    declared: Callable[[int, str, Mapping], RoundingModel | None] = lambda *_: None
    bits: Callable[[int, str, Mapping], Rows | None] = lambda *_: None
    spell: Callable[[int], str] = lambda _: ""


@dataclass(frozen=True)
class Declared:
    """What the engine says of itself: the dtype stored at each site, and what it never stores.

    `scales_LK`: of the caches whose numbers are stored scaled, by site.
    """

    dims: Mapping[str, int]
    stores: Mapping[str, str]
    fused: frozenset[str] = frozenset()
    scales_LK: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, dims: Mapping[str, int], precision: Mapping[str, Mapping], stored: Iterable[str]
    ) -> "Declared":
        """From what is declared of each site; those that are not `stored` are fused."""
        stored = frozenset(stored)
        return cls(
            dims,
            {site: str(precision[site]["store"]) for site in stored},
            frozenset(sites.SITES) - stored,
            {s: precision[s]["scale_LK"] for s in stored if "scale_LK" in precision[s]},
        )

    def storage(self, layer: int, site: str) -> Storage:
        if site not in self.scales_LK:
            return Storage(self.stores[site])
        return Storage(self.stores[site], np.asarray(self.scales_LK[site][layer])[:, None])


@dataclass(frozen=True)
class SiteVerdict:
    """All tokens of one site of one layer.

    `ratios` are |local| over floor, elementwise; of the cache, only new slots if the others kept.
    """

    layer: int
    site: str
    judgements: tuple[Judgement, ...]
    ratios: tuple[np.ndarray, ...] = ()

    @property
    def worst(self) -> Judgement:
        return verdict.worst(self.judgements)

    @property
    def status(self) -> Status:
        return self.worst.status


def captured(side: trace.Trace, layer: int, site: str, dims: Mapping[str, int]) -> Rows:
    """The rows of one place, for use as an op's input. Raises InputMissing unless whole."""
    name, tokens = sites.name(layer, site), len(side.run.token_ids_T)
    if (layer, site) not in side:
        raise InputMissing(f"its input {name} was not captured")
    rows = side.rows(layer, site)
    if len(rows) != tokens:
        raise InputMissing(f"its input {name} was captured for {len(rows)} of {tokens} tokens")
    for position, row in enumerate(rows):
        if row.shape != (expected := sites.row_shape(site, dims, position)):
            raise InputMissing(f"its input {name} has shape {row.shape}, expected {expected}")
    return rows


def _all_tokens(ref: trace.Trace, layer: int, site: str, status: Status, reason: str):
    keys = [ref.run.key(position, layer, site) for position in range(len(ref.run.token_ids_T))]
    return SiteVerdict(layer, site, tuple(Judgement(key, status, reason) for key in keys))


def _finite(inputs: Mapping[str, object], position: int) -> bool:
    """Whether the rows of `inputs` at this token are finite; inputs that are no rows always are.

    Of the slabs of a cache, a token reads the one that the token before left.
    """
    read = {name: position - (name == "slabs") for name in inputs}
    rows = [
        value[read[name]]
        for name, value in inputs.items()
        if isinstance(value, (list, np.ndarray)) and read[name] >= 0
    ]
    return all(np.isfinite(row).all() for row in rows if np.issubdtype(row.dtype, np.floating))


def _absent(ref: trace.Trace, got: trace.Trace, site: str, layer: int, fused: frozenset[str]):
    if site in fused:
        return _all_tokens(ref, layer, site, Status.FUSED, "the engine never stores it")
    if (layer, site) not in got:
        return _all_tokens(ref, layer, site, Status.MISSING, "declared but not in the trace")
    if len(got.rows(layer, site)) != len(ref.rows(layer, site)):
        counts = f"{len(got.rows(layer, site))} of {len(ref.rows(layer, site))} tokens"
        return _all_tokens(ref, layer, site, Status.MISSING, f"the trace holds {counts}")
    return None


def judge_site(
    ref: trace.Trace,
    got: trace.Trace,
    arithmetic: Arithmetic,
    declared: Declared,
    layer: int,
    site: str,
) -> SiteVerdict:
    """The verdict on one site of one layer for every token. Raises UnequalKeys."""
    if absent := _absent(ref, got, site, layer, declared.fused):
        return absent
    try:
        read_ref, read_got = (arithmetic.inputs(side, layer, site) for side in (ref, got))
    except InputMissing as lacking:
        return _all_tokens(ref, layer, site, Status.INCONCLUSIVE, str(lacking))
    keys = [list(side.keys(layer, site)) for side in (ref, got)]
    for pair in zip(*keys, strict=True):
        trace.require_equal(*pair)
    sides = ref.rows(layer, site), got.rows(layer, site)
    tensors = Tensors(*sides, **_computed(arithmetic, layer, site, read_ref, read_got))
    shape_at, stored = partial(sites.row_shape, site, declared.dims), declared.storage(layer, site)
    judgements, ratios = [], []
    for tokens, numbers in measured(tensors, site, shape_at, stored):
        of_these = keys[0][tokens.start : tokens.stop]
        if numbers is None:
            for key, at in zip(of_these, tokens, strict=True):
                pair = (side[at] for side in sides)
                judgements.append(verdict.wrong_shape(key, shape_at(at), *pair))
                ratios.append(np.full(shape_at(at), np.inf))
            continue
        dtypes = stored.dtype, sides[1][tokens.start].dtype
        judgements += verdict.judge(of_these, numbers, dtypes, partial(_finite, read_got))
        ratios += [_of_new_slots(site, ratio) for ratio in numbers.ratios]
    found = SiteVerdict(layer, site, tuple(judgements), tuple(ratios))
    return _unless_vacuous(found, ref, got)


def _computed(arithmetic: Arithmetic, layer: int, site: str, read_ref, read_got) -> dict:
    """All that Tensors hold beside what the two sides stored."""
    names = arithmetic.through(site)
    mixed = split.mixtures(names, read_ref, read_got)
    every = [read_ref, read_got, *mixed.values()]
    op64_ref, op64_got, *between = arithmetic.op64(layer, site, every)
    corners = dict(zip(mixed, between, strict=True))
    if names:
        corners |= {frozenset(): op64_ref, frozenset(names): op64_got}
    return {
        "op64_ref": op64_ref,
        "op64_got": op64_got,
        "floor": arithmetic.floor(layer, site, read_got),
        "closure": arithmetic.closure(layer, site, read_ref),
        "corners": corners,
        "declared": arithmetic.declared(layer, site, read_got),
        "bits": arithmetic.bits(layer, site, read_got),
    }


def _of_new_slots(site: str, ratio: np.ndarray) -> np.ndarray:
    """Without the slots of earlier tokens, where a step kept them all: no need to say so again."""
    grows = sites.SHAPES[site].startswith("S")
    return ratio[-1:] if grows and not ratio[:-1].any() else ratio


def _unless_vacuous(found: SiteVerdict, ref: trace.Trace, got: trace.Trace) -> SiteVerdict:
    """Turns a pass that could not have failed into `vacuous`; a failure stays a failure."""
    if found.status not in verdict.CLEAN:
        return found
    place = found.layer, found.site
    rows = ref.rows(*place), got.rows(*place)
    if not (why := vacuity.why_vacuous(found.site, *rows, _distinct_tokens(ref))):
        return found
    hollow = (replace(j, status=Status.VACUOUS, reason=why) for j in found.judgements)
    return replace(found, judgements=tuple(hollow))


def _distinct_tokens(ref: trace.Trace) -> int:
    """Different ids, or embeddings: a vocabulary may hold one embedding twice."""
    place = sites.NO_LAYER, "embed"
    if place in ref:
        return len({np.ascontiguousarray(row).tobytes() for row in ref.rows(*place)})
    return len(set(ref.run.token_ids_T))


def judge_all(
    ref: trace.Trace,
    got: trace.Trace,
    arithmetic: Arithmetic,
    declared: Declared,
    layers: Iterable[int],
    chosen_sites: Iterable[str],
) -> Iterator[SiteVerdict]:
    """Verdicts of all chosen places in dataflow order. Raises UnequalKeys before any verdict."""
    trace.require_same_run(ref.run, got.run, arithmetic.spell)
    for layer, site in sites.places(layers, chosen_sites):
        yield judge_site(ref, got, arithmetic, declared, layer, site)
