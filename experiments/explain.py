"""Asks the oracle's known mistakes at the first divergence, on the inputs the engine really had."""

import itertools
from dataclasses import dataclass

import numpy as np

from experiments.align import (
    compare,
    divergence,
    metrics,
    naming,
    patterns,
    sites,
    slot_patterns,
    trace,
    verdict,
)
from experiments.align.slabs import append_only
from experiments.arithmetic import SLACK, OracleArithmetic
from experiments.reference import rows_of
from experiments.token_blocks import ATTENTION_SITES
from greta_jax.graph import KV_SITES
from greta_jax.hypotheses import FALLBACKS, HYPOTHESES, SHOWS, counterfactuals

NEXT_STEPS = {
    "embed": "--route does not matter here: compare the file's bytes of one embedding row",
    "attn.out": "the same prompt on another --route: an error that stays is in what they share",
    "kv.k": "table B above: which slot was written, and by which step",
    "kv.v": "table B above: which slot was written, and by which step",
}
ANYWHERE = "the same fault at one token (--prompt=p0_short --layers=0,1) and the pattern of the map"
COARSER = (
    "arithmetic coarser than declared would err so: python -m experiments.precision_ablation "
    "--factors=compute=fp16@{site} --compare=engine"
)
"""Of an error too large for the declared rounding, and small beside the signal."""


@dataclass(frozen=True)
class Explained:
    """What the first divergence is, and what its error map looks like."""

    naming: naming.Naming
    patterns: tuple[str, ...]

    def sentences(self) -> list[str]:
        shape = "; ".join(self.patterns) or "none that is known"
        return [f"pattern of the error: {shape}", self.naming.sentence()]

    def record(self) -> dict:
        return self.naming.record() | {"patterns": list(self.patterns)}


@dataclass(frozen=True)
class _Place:
    """A site of a layer that failed: what was got, and what it should be to the floor.

    `side` ends before the first token at which this op's inputs are not finite.
    """

    side: trace.Trace
    layer: int
    site: str
    status: verdict.Status
    inputs: dict
    got: compare.Rows
    right: naming.Explanation


def explain(
    arithmetic: OracleArithmetic, got: trace.Trace, verdicts: list[compare.SiteVerdict]
) -> Explained | None:
    """The first divergence explained; None where no op is to blame, or not in its numbers."""
    first = divergence.first_divergence(j for found in verdicts for j in found.judgements)
    if first is None or first.first.status in (verdict.Status.SHAPE, verdict.Status.DTYPE):
        return None
    layer, site = first.first.key.layer, first.first.key.site
    here = {found.layer: found for found in verdicts if found.site == site}
    failed = tuple(other for other, found in here.items() if found.status in verdict.FAILED)
    place = _place(arithmetic, got, here[layer])
    found = _name(arithmetic, place)
    others = [other for other in failed if other != layer and _blamed(here[other])]
    places = [_place(arithmetic, got, here[other]) for other in others if found.candidates]
    again = [_name(arithmetic, other) for other in places]
    facts = {"failed": failed, "judged": tuple(here)}
    facts["G"] = arithmetic.dims["N"] // arithmetic.dims["K"]
    drawn = patterns.error_map(site, place.got, place.right.rows, place.right.floor, **facts)
    shapes = patterns.find(drawn)
    slots_TS = slot_patterns.slot_map(site, place.got, place.right.rows, place.right.floor)
    if slots_TS is not None:
        shapes += slot_patterns.find(slots_TS)
    return Explained(naming.agree(found, again, NEXT_STEPS.get(site, ANYWHERE)), shapes)


def _blamed(found: compare.SiteVerdict) -> list[verdict.Judgement]:
    """Of the tokens before the first at which this op's inputs are not finite: the op's own."""
    before = itertools.takewhile(lambda j: not j.inherited, found.judgements)
    return [judgement for judgement in before if judgement.blames_this_op]


def _place(arithmetic: OracleArithmetic, got: trace.Trace, found: compare.SiteVerdict) -> _Place:
    layer, site, status = found.layer, found.site, verdict.worst(_blamed(found)).status
    inherited = (j.key.position for j in found.judgements if j.inherited)
    got = got.first_tokens(next(inherited, len(got.run.token_ids_T)))
    inputs = arithmetic.inputs(got, layer, site)
    sources = arithmetic.floor(layer, site, inputs).values()
    floor = [np.maximum.reduce(rows) for rows in zip(*sources, strict=True)]
    rows, op64 = got.rows(layer, site), arithmetic.op64(layer, site, inputs)
    if site in KV_SITES:
        # The slab at the end, a slot a row, whoever wrote it.
        rows, op64, floor = rows[-1], (slab[-1] for slab in op64), (slab[-1] for slab in floor)
    right = naming.Explanation(list(op64), list(floor))
    return _Place(got, layer, site, status, inputs, rows, right)


def _name(arithmetic: OracleArithmetic, place: _Place) -> naming.Naming:
    mistakes = _mistakes(arithmetic, place, HYPOTHESES.get(place.site, {}))
    unasked = sorted(set(HYPOTHESES.get(place.site, ())) - set(mistakes))
    next_step = _next_step(place, mistakes)
    found = naming.name(place.got, place.right, mistakes, unasked, next_step)
    if found.named or found.candidates:
        return found
    mistakes |= _mistakes(arithmetic, place, FALLBACKS)
    return naming.name(place.got, place.right, mistakes, unasked, next_step)


def _next_step(place: _Place, mistakes: dict) -> str:
    """What to run if no mistake is this one. Of an error that is but coarse, its size is compared
    with that of sums in half precision, whose bits no captured tensor fixes."""
    if place.status is not verdict.Status.ABOVE_FLOOR:
        return NEXT_STEPS.get(place.site, ANYWHERE)
    step = COARSER.format(site=place.site)
    if fp16 := mistakes.get("fp16_accumulation"):
        sizes = [_size(rows, place.right.rows) for rows in (place.got, fp16.rows)]
        step += f" (rms error {sizes[0]:.2g}; sums in fp16, one after the other: {sizes[1]:.2g})"
    return step


def _size(rows: compare.Rows, right: compare.Rows) -> float:
    pairs = zip(rows, right, strict=True)
    return metrics.rms(np.concatenate([metrics.difference(*pair).ravel() for pair in pairs]))


def _mistakes(arithmetic: OracleArithmetic, place: _Place, table: dict) -> dict:
    """Every hypothesis of the table that can be asked of these inputs."""
    layer, site, inputs = place.layer, place.site, place.inputs
    captured = {name: value for name, value in inputs.items() if name != SLACK}
    others = _others(place.side, layer, arithmetic.layers - 1)
    slack = inputs.get(SLACK)

    def rounding(oracle, site, layer, changed):
        return arithmetic.bound_of(oracle, layer, site, changed, slack)

    asked = (arithmetic.fp64, layer, site)
    how = {"got": _whole(place), "table": table, "batched": arithmetic.batched}
    answers = _ask(*asked, dict(captured), others, **how)
    bounds = _ask(*asked, dict(captured), others, evaluate=rounding, **how)
    return {
        name: naming.Explanation(
            _rows(site, answer),
            _rows(site, _magnitude(bounds[name])),
            SHOWS.get(name, ""),
        )
        for name, answer in answers.items()
    }


def _rows(site: str, value: np.ndarray) -> compare.Rows:
    """One array a token, as `_place` takes them: of the cache, one array a slot."""
    return value if site in KV_SITES else rows_of(site, value)


def _whole(place: _Place) -> np.ndarray | None:
    """What was got, T first, where its rows have one shape."""
    same = len({np.shape(row) for row in place.got}) == 1
    return np.asarray(place.got) if same else None


def _magnitude(bound: np.ndarray) -> np.ndarray:
    """A bound that a hypothesis passed on as if it were a result: signs, fills and all."""
    return np.where(np.isfinite(bound), np.abs(bound), 0.0)


def _ask(oracle, layer: int, site: str, inputs: dict, others: dict, **how) -> dict:
    """By name, T first; NaN for tokens at which a hypothesis does not apply."""
    if site in KV_SITES:
        del inputs["slabs"]
    if site not in ATTENTION_SITES:
        return counterfactuals(oracle, site, layer, inputs, others, **how)
    slabs = [name for name in KV_SITES if name in inputs]
    tokens = len(inputs["attn.q_rope"])
    if not all(append_only(inputs[name]) for name in slabs):
        return {}  # Overwritten slots are an error of kv.k or kv.v, which comes first.
    last = {name: inputs[name][-1] for name in slabs}
    inputs = {**inputs, **last, "positions": np.arange(tokens)}
    return counterfactuals(oracle, site, layer, inputs, others, **how)


OTHERS = ("attn.q", "attn.k", "attn.v", "attn.k_rope")


def _others(got: trace.Trace, layer: int, last_layer: int) -> dict:
    """What a mistake may have read instead, where it was captured: the newest slabs of the layers
    that a wrong base might mean, and tensors of this layer."""
    found = {}
    for place in ((other, name) for other in {0, layer - 1} - {layer, -1} for name in KV_SITES):
        if place in got and append_only(got.rows(*place)):
            found[place] = got.rows(*place)[-1]
    here = [(layer, name) for name in OTHERS]
    here += [(layer - 1, "resid.out") if layer > 0 else (sites.NO_LAYER, "embed")]
    here += [(last_layer, "resid.out")]
    return found | {place: got.rows(*place) for place in here if place in got}
