"""Asks the oracle's known mistakes at the first divergence, on the inputs the engine really had."""

from collections.abc import Iterator

import numpy as np

from experiments.align import compare, divergence, naming, sites, trace, verdict
from experiments.arithmetic import ATTENTION_SITES, SLACK, OracleArithmetic, append_only
from experiments.reference import rows_of
from greta_jax.graph import KV_SITES
from greta_jax.hypotheses import DIRECT, HYPOTHESES, SHOWS, counterfactuals

NEXT_STEPS = {
    "embed": "--route does not matter here: compare the file's bytes of one embedding row",
    "attn.out": "the same prompt on another --route: an error that stays is in what they share",
    "kv.k": "table B above: which slot was written, and by which step",
    "kv.v": "table B above: which slot was written, and by which step",
}
ANYWHERE = "the same fault at one token (--prompt=p0_short --layers=0,1) and the pattern of the map"


def name_first(
    arithmetic: OracleArithmetic, got: trace.Trace, verdicts: list[compare.SiteVerdict]
) -> naming.Naming | None:
    """What the first divergence is; None where no op is to blame."""
    judgements = [j for found in verdicts for j in found.judgements]
    first = divergence.first_divergence(judgements)
    if first is None or first.first.status in (verdict.Status.SHAPE, verdict.Status.DTYPE):
        return None
    layer, site = first.first.key.layer, first.first.key.site
    found = _name(arithmetic, got, layer, site)
    failed = (v.layer for v in verdicts if v.site == site and v.status in verdict.FAILED)
    others = [other for other in failed if other != layer] if found.candidates else []
    return naming.agree(found, [_name(arithmetic, got, other, site) for other in others])


def _name(arithmetic: OracleArithmetic, got: trace.Trace, layer: int, site: str) -> naming.Naming:
    inputs = arithmetic.inputs(got, layer, site)
    sources = arithmetic.floor(layer, site, inputs).values()
    floor = [np.maximum.reduce(rows) for rows in zip(*sources, strict=True)]
    right = naming.Explanation(arithmetic.op64(layer, site, inputs), floor)
    mistakes = _mistakes(arithmetic, got, layer, site, inputs, floor)
    unasked = sorted(set(HYPOTHESES.get(site, ())) - set(mistakes))
    next_step = NEXT_STEPS.get(site, ANYWHERE)
    return naming.name(got.rows(layer, site), right, mistakes, unasked, next_step)


def _mistakes(arithmetic, got: trace.Trace, layer: int, site: str, inputs: dict, floor):
    """Every hypothesis that can be asked of these inputs."""
    if site not in HYPOTHESES:
        return {}
    captured = {name: value for name, value in inputs.items() if name != SLACK}
    others = _other_slabs(got, layer, site)
    slack = inputs.get(SLACK)

    def rounding(oracle, site, layer, changed):
        return arithmetic.bound_of(oracle, layer, site, changed, slack)

    answers = _ask(arithmetic.fp64, layer, site, captured, others)
    bounds = _ask(arithmetic.fp64, layer, site, captured, others, evaluate=rounding)
    return {
        name: naming.Explanation(
            rows_of(site, answer),
            floor if name in DIRECT else rows_of(site, _magnitude(bounds[name])),
            SHOWS.get(name, ""),
        )
        for name, answer in answers.items()
    }


def _magnitude(bound: np.ndarray) -> np.ndarray:
    """A bound that a hypothesis passed on as if it were a result: signs, fills and all."""
    return np.where(np.isfinite(bound), np.abs(bound), 0.0)


def _ask(oracle, layer: int, site: str, inputs: dict, others: dict, **how) -> dict:
    """By name, T first; NaN for tokens at which a hypothesis does not apply."""
    if site not in ATTENTION_SITES:
        return counterfactuals(oracle, site, layer, inputs, others, **how)
    slabs = [name for name in KV_SITES if name in inputs]
    tokens = len(inputs["attn.q_rope"])
    if not all(append_only(inputs[name]) for name in slabs):
        return {}  # Overwritten slots are an error of kv.k or kv.v, which comes first.
    last = {name: inputs[name][-1] for name in slabs}
    inputs = {**inputs, **last, "positions": np.arange(tokens)}
    return counterfactuals(oracle, site, layer, inputs, others, **how)


def _other_slabs(got: trace.Trace, layer: int, site: str) -> dict:
    """The newest slabs of the layers that a wrong base might mean, where they were captured."""
    return dict(_captured_slabs(got, {0, layer - 1} - {layer, sites.NO_LAYER}))


def _captured_slabs(got: trace.Trace, layers: set[int]) -> Iterator[tuple]:
    for place in ((layer, name) for layer in layers for name in KV_SITES):
        if place in got and append_only(got.rows(*place)):
            yield place, got.rows(*place)[-1]
