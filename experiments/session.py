"""Runs an alignment: the oracle's side, the engine's side, the judge, and the route matrix."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from experiments import kv_watch, repro, saved_floors, under_test
from experiments.align import (
    cache_blame,
    compare,
    divergence,
    sites,
    trace,
    verdict,
)
from experiments.align.report import RouteResult
from experiments.alignment import (
    Alignment,
    PromptResult,
    assert_within_floors,
    not_attested,
)
from experiments.arithmetic import OracleArithmetic
from experiments.explain import explain
from experiments.flags import Config
from experiments.flips import NextTokens, next_tokens
from experiments.opening import Opened, opened
from experiments.progress import Clock
from experiments.reference import Reference, laws
from hip_engine import routes
from hip_engine.errors import DeviceFault


def run(
    config: Config,
    clock: Clock,
    route_matrix: bool = True,
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
            try:
                result = _align(both, engine, references[prompt], alignment, clock)
            except DeviceFault as error:
                alignment.device_faults.append(f"{prompt}: {error}")
                continue
            alignment.results[prompt] = result
            if bundles:
                folder = both.config.out_path / f"{bundles}_{Path(prompt).stem}_repro"
                again = partial(both.engine, engine.route)
                with clock.stage("failed op", prompt):
                    sides = both.oracle, engine, alignment.facts, both.config, again, both.fault
                    if written := repro.write(folder, result, *sides):
                        alignment.bundles[prompt] = written
        alignment.floor_changes.extend(saved_floors.changes(saved, alignment.floors))
        if route_matrix:
            alignment.routes.extend(_route_matrix(both, alignment, engine, clock))
        with clock.stage("laws of the oracle"):
            alignment.laws.extend(laws(both.oracle))
    return alignment


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
    declared = compare.Declared(
        dims=dims,
        stores={site: engine.precision[site]["store"] for site in engine.sites},
        fused=frozenset(sites.SITES) - frozenset(engine.sites),
    )
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


def _route_matrix(
    both: Opened, alignment: Alignment, engine, clock: Clock
) -> Iterator[RouteResult]:
    """All nine combinations; a route that several names stand for is run once."""
    results = alignment.results
    ran = {engine.route: {prompt: _as_route_run(r) for prompt, r in results.items()}}
    for name, chosen, why in under_test.all_routes(engine, both.config.kv_dtype):
        if chosen is None:
            yield RouteResult(name, status="not possible", note=why)
            continue
        if chosen not in ran:
            with clock.stage("other routes", str(chosen)):
                ran[chosen] = _run_route(both, alignment, chosen)
        for prompt, result in results.items():
            yield _route_result(name, chosen, why, ran[chosen][prompt], result.reference)


def _as_route_run(result: PromptResult) -> under_test.RouteRun:
    last = result.reference.prompt_tokens - 1
    seen = result.run.attestation  # of every token, the prompt's too: they were fed one by one
    return under_test.RouteRun(*result.run.top1_T[last : last + 2], seen, seen)


def _run_route(
    both: Opened, alignment: Alignment, route: routes.Route
) -> dict[str, under_test.RouteRun | DeviceFault]:
    ran, engine = {}, both.engine(route)
    for prompt, result in alignment.results.items():
        try:
            ran[prompt] = under_test.run_route(engine, result.reference)
        except DeviceFault as fault:
            ran[prompt] = fault
    engine.close()
    return ran


def _route_result(name, chosen, why, ran, reference: Reference) -> RouteResult:
    if isinstance(ran, DeviceFault):
        return RouteResult(name, reference.prompt, status="device fault", note=str(ran))
    tokens = ran.prefill_last_top1, ran.decode0_top1
    seen = ran.attestation
    if not_attested(str(chosen), seen):
        status = f"not attested as {chosen}"
    else:
        status = "ok" if tokens == reference.expected else "token differs"
    prompt_by = ran.prefill.observed
    notes = ["" if name == str(chosen) else why]
    notes.append(f"the prompt by {prompt_by} kernels" if prompt_by != seen.observed else "")
    note = "; ".join(filter(None, notes))
    return RouteResult(name, reference.prompt, seen.observed, *tokens, status, note)
