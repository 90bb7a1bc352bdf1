"""Runs an alignment: the oracle's side, the engine's side, the judge, and the route matrix."""

import contextlib
from functools import partial
from pathlib import Path

from experiments import kv_watch, repro, route_matrix, saved_floors, under_test
from experiments.align import (
    cache_blame,
    compare,
    divergence,
    sites,
    trace,
    verdict,
)
from experiments.alignment import (
    Alignment,
    PromptResult,
    assert_within_floors,
)
from experiments.arithmetic import OracleArithmetic
from experiments.explain import explain
from experiments.flags import Config
from experiments.flips import NextTokens, next_tokens
from experiments.opening import Opened, opened
from experiments.progress import Clock
from experiments.reference import Reference, laws
from hip_engine.errors import DeviceFault


def run(
    config: Config,
    clock: Clock,
    every_route: bool = True,
    references: dict[str, Reference] | None = None,
    bundles: str = "",
) -> Alignment:
    """Everything from files to verdicts. Bad input raises before anything slow starts.

    `references`: those of earlier runs of the same configuration, by prompt; new ones are added.
    `bundles`: the experiment under whose name a failed op is left to be replayed; none if empty.
    """
    references = {} if references is None else references
    saved = saved_floors.load(config)
    with opened(config, clock) as both:
        with clock.stage("engine load"):
            engine = both.engine()
        alignment = Alignment(
            both.config,
            _facts(both, engine),
            both.layers,
            both.oracle.config.dimensions,
            engine.kv_geometry(),
        )
        saved_floors.require_comparable(saved, both.config, alignment.facts)
        for prompt in both.config.prompt:
            if prompt not in references:
                with clock.stage("oracle pass", prompt):
                    references[prompt] = both.reference(prompt)
        chosen = [references[prompt] for prompt in both.config.prompt]
        asked = both.config, both.fault, engine, chosen
        beside = route_matrix.others_beside(*asked) if every_route else contextlib.nullcontext()
        with beside as answers:
            for reference in chosen:
                _judge(both, engine, reference, alignment, clock, bundles)
            if answers:
                with clock.stage("other routes, the rest"):
                    found = route_matrix.rows(both.config, engine, alignment.results, answers)
                    alignment.routes.extend(found)
        alignment.floor_changes.extend(saved_floors.changes(saved, alignment.floors))
        with clock.stage("laws of the oracle"):
            alignment.laws.extend(laws(both.oracle))
    return alignment


def _judge(
    both: Opened, engine, reference: Reference, alignment: Alignment, clock: Clock, bundles: str
) -> None:
    """Adds a prompt's result, or the fault that ended its run, and leaves a failed op's bundle."""
    prompt = reference.prompt
    try:
        result = _align(both, engine, reference, alignment, clock)
    except DeviceFault as error:
        alignment.device_faults.append(f"{prompt}: {error}")
        return
    alignment.results[prompt] = result
    if not bundles:
        return
    folder = both.config.out_path / f"{bundles}_{Path(prompt).stem}_repro"
    again = partial(both.engine, engine.route)
    with clock.stage("failed op", prompt):
        sides = both.oracle, engine, alignment.facts, both.config, again, both.fault
        if written := repro.write(folder, result, *sides):
            alignment.bundles[prompt] = written


def _facts(both: Opened, engine) -> dict:
    return both.facts(engine) | {
        "oracle_policy": both.oracle.policy.as_record(),
        "engine_precision": engine.precision,
        "route_requested": both.config.route,
        "route_reason": engine.route_reason,
        "kv_evidence": kv_watch.evidence(both.device),
    }


def _align(
    both: Opened, engine, reference: Reference, alignment: Alignment, clock: Clock
) -> PromptResult:
    config, prompt, oracle = both.config, reference.prompt, both.oracle
    watch = config.kv_invariants
    batched = 0 if config.prefill == "steps" else reference.prompt_tokens
    with clock.counted("engine steps", prompt) as progress:
        got = under_test.run_forced(
            engine, both.device, reference, both.layers, watch, batched, progress
        )
    if not config.decode_ref:
        return PromptResult(reference, got, [], "")
    dims = oracle.config.dimensions
    ops = OracleArithmetic(oracle, dims, engine.precision, engine.prefill_precision, batched)
    arithmetic = ops.as_arithmetic()
    declared = compare.Declared.of(dims, engine.precision, engine.sites)
    with clock.counted("replays and bounds", prompt) as progress:
        judged = compare.judge_all(
            reference.trace, got.trace, arithmetic, declared, alignment.layers, both.sites
        )
        verdicts, total = [], len(sites.places(alignment.layers, both.sites))
        for found in judged:
            verdicts.append(found)
            progress(len(verdicts), total)
    assertion = _assertion(verdicts, got.trace, dims)
    with clock.stage("known mistakes", prompt):
        explained = explain(ops, got.trace, verdicts)
    with clock.stage("next tokens", prompt):
        moved = _next_tokens(ops, reference, got, alignment.layers, verdicts)
    kept = {}
    if config.save_floors or config.check_floors:
        with clock.stage("floors of the reference", prompt):
            chosen = alignment.layers, both.sites
            kept = saved_floors.of_reference(ops, reference.trace, *chosen)
    steps = [watched.layers for watched in got.watched]
    blamed = cache_blame.find(verdicts, got.trace, declared.stores, steps)
    return PromptResult(reference, got, verdicts, assertion, explained, moved, kept, blamed)


def _next_tokens(ops, reference: Reference, got, layers, verdicts) -> NextTokens | None:
    """None for a trace with holes: the run is inconclusive already."""
    found = [j for of_site in verdicts for j in of_site.judgements]
    if any(judgement.status is verdict.Status.MISSING for judgement in found):
        return None
    failed = divergence.first_divergence(found)
    failed_at = failed.first.key.position if failed else None
    return next_tokens(ops, reference.trace, got.trace, layers, failed_at)


def _assertion(verdicts: list[compare.SiteVerdict], got: trace.Trace, dims: dict[str, int]) -> str:
    """The assertion that failed; empty if all held."""
    try:
        assert_within_floors(verdicts, got, dims)
    except AssertionError as error:
        return str(error)
    return ""
