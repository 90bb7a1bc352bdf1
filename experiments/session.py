"""Runs an alignment: the oracle's side, the engine's side, the judge, and the route matrix."""

import subprocess
from collections.abc import Iterator

import hip_engine.engine as engines
from experiments import inject, under_test
from experiments.align import compare, faults, records, sites, trace
from experiments.align.report import RouteResult
from experiments.alignment import Alignment, PromptResult, assert_within_floors
from experiments.flags import ROOT, Config, parse_layers
from experiments.progress import Clock
from experiments.reference import (
    OracleArithmetic,
    Reference,
    make_reference,
    tokenise,
)
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from hip_engine import kernels, routes
from hip_engine.device import Device, open_device
from hip_engine.errors import DeviceFault
from hip_engine.gfx942 import jit


def run(config: Config, clock: Clock) -> Alignment:
    """Everything from files to verdicts. Bad input raises before anything slow starts."""
    records.writable_dir(config.out_path)
    fault = faults.find(config.inject_fault) if config.inject_fault else None
    routes.resolve(routes.Route.parse(config.route))
    chosen_sites = sites.resolve(config.points)
    with clock.stage("oracle load"):
        oracle = Oracle.open(config.model, Policy.uniform(_dtype(config.precision)))
        layers = parse_layers(config.layers, oracle.config.layers)
        for prompt in config.prompt:
            tokenise(oracle, prompt, config.max_tokens)
    device = open_device(config.device)
    parts = ((kernels, "build", "kernel build"), (jit, "compile_kernel", "translation"))
    with inject.host_patch(fault), clock.watching(parts):
        with clock.stage("engine load"):
            engine = engines.Engine.open(
                config.model,
                device,
                route=config.route,
                kv_dtype=config.kv_dtype,
                source_patch=inject.kernel_patches(fault),
            )
        alignment = Alignment(
            config,
            _facts(config, oracle, engine),
            layers,
            oracle.config.dimensions,
            engine.kv_geometry(),
        )
        for prompt in config.prompt:
            with clock.stage("oracle pass", prompt):
                reference = make_reference(oracle, prompt, config.max_tokens, layers)
            try:
                result = _align(oracle, engine, device, reference, alignment, chosen_sites, clock)
            except DeviceFault as error:
                alignment.device_faults.append(f"{prompt}: {error}")
                continue
            alignment.results[prompt] = result
        alignment.routes.extend(_route_matrix(alignment, device, clock))
    return alignment


def _dtype(precision: str) -> str:
    return {"fp64": "float64", "fp32": "float32"}[precision]


def _facts(config: Config, oracle: Oracle, engine) -> dict:
    return {
        "model_sha256": oracle.model_sha256,
        "commit": _commit(),
        "code_object_sha256": engine.code_object_sha256,
        "device": config.device,
        "oracle_policy": oracle.policy.as_record(),
        "engine_precision": engine.precision,
        "route_requested": config.route,
        "route_resolved": str(engine.route),
        "route_reason": engine.route_reason,
        "injected_fault": config.inject_fault,
    }


def _commit() -> str:
    """The commit of the tree, marked when it has changes; empty outside a checkout."""
    command = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _align(
    oracle: Oracle,
    engine,
    device: Device,
    reference: Reference,
    alignment: Alignment,
    chosen_sites: tuple[str, ...],
    clock: Clock,
) -> PromptResult:
    config, prompt = alignment.config, reference.prompt
    with clock.counted("engine steps", prompt) as progress:
        got = under_test.run_forced(
            engine, device, reference, alignment.layers, config.kv_invariants, progress
        )
    if not config.decode_ref:
        return PromptResult(reference, got, [], "")
    dims = oracle.config.dimensions
    arithmetic = OracleArithmetic(oracle, dims, engine.precision).as_arithmetic()
    declared = compare.Declared(
        dims=dims,
        stores={site: engine.precision[site]["store"] for site in engine.sites},
        fused=frozenset(sites.SITES) - frozenset(engine.sites),
    )
    with clock.counted("replays and bounds", prompt) as progress:
        judged = compare.judge_all(
            reference.trace, got.trace, arithmetic, declared, alignment.layers, chosen_sites
        )
        verdicts, total = [], len(sites.places(alignment.layers, chosen_sites))
        for found in judged:
            verdicts.append(found)
            progress(len(verdicts), total)
    return PromptResult(reference, got, verdicts, _assertion(verdicts, got.trace, dims))


def _assertion(verdicts: list[compare.SiteVerdict], got: trace.Trace, dims: dict[str, int]) -> str:
    """The assertion that failed; empty if all held."""
    try:
        assert_within_floors(verdicts, got, dims)
    except AssertionError as error:
        return str(error)
    return ""


def _route_matrix(alignment: Alignment, device: Device, clock: Clock) -> Iterator[RouteResult]:
    """All nine combinations; a route that another name stands for is run once."""
    config, ran = alignment.config, {}
    main_route = routes.Route.parse(config.route)
    for prompt, result in alignment.results.items():
        first = result.reference.prompt_tokens - 1
        top1 = result.run.top1_T
        ran[routes.resolve(main_route)[0], prompt] = under_test.RouteRun(
            result.run.attestation.observed, top1[first], top1[first + 1]
        )
    for name, chosen, why in under_test.all_routes():
        if chosen is None:
            yield RouteResult(name, status="not built")
            continue
        for prompt, result in alignment.results.items():
            if (chosen, prompt) not in ran:
                with clock.stage("other routes", f"{chosen} {prompt}"):
                    other = engines.Engine.open(
                        config.model, device, route=chosen, kv_dtype=config.kv_dtype
                    )
                    ran[chosen, prompt] = under_test.run_route(other, result.reference)
                    other.close()
            yield _route_result(name, chosen, why, ran[chosen, prompt], result.reference)


def _route_result(name, chosen, why, route_run, reference: Reference) -> RouteResult:
    tokens = route_run.prefill_last_top1, route_run.decode0_top1
    if route_run.observed != str(chosen):
        status = f"not attested: expected {chosen}"
    else:
        status = "ok" if tokens == reference.expected else "token differs"
    note = "" if name == str(chosen) else why
    return RouteResult(name, reference.prompt, route_run.observed, *tokens, status, note)
