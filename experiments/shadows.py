"""B3.21 over routes and prompts: load, run with the shadow, judge both kernels, check vacuity."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from experiments.align import compare, report, trace, verdict
from experiments.arithmetic import OracleArithmetic
from experiments.flags import EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_ORACLE, Config, UsageError
from experiments.opening import Opened, opened
from experiments.outcome import Outcome
from experiments.progress import Clock
from experiments.reference import Reference, needed_layers
from experiments.shadow import Pair, ShadowDevice
from experiments.under_test import Taken
from hip_engine import routes
from hip_engine.engine import Engine
from hip_engine.errors import EngineError
from hip_engine.kv_types import KV_TYPES
from hip_engine.precision import declared_precision
from hip_engine.taps import Taps
from hip_engine.weights import open_model

SITE = "attn.out"
NEEDED = ("attn.q", "attn.k", "attn.q_rope", "kv.k", "kv.v", SITE)


@dataclass(frozen=True)
class Seen:
    """What one route and prompt came to, layer by layer."""

    layer: int
    mfma: compare.SiteVerdict
    valu: compare.SiteVerdict
    apart: float


def run(config: Config, clock: Clock) -> Outcome:
    outcome = Outcome("b3_21", config)
    with opened(config, clock) as both:
        references = {}
        for prompt in config.prompt:
            with clock.stage("oracle pass", prompt):
                references[prompt] = both.reference(prompt)
            for text in references[prompt].complaints:
                outcome.reasons.append((EXIT_ORACLE, f"{prompt}: oracle self-check: {text}"))
        for route in _routes(config):
            device = ShadowDevice(both.device)
            try:
                with clock.stage("engine load", route):
                    # No longer than needed: the cache is put back after every launch.
                    longest = max(len(r.token_ids) for r in references.values())
                    engine = both.engine(route, device, max_context=longest)
                    text = _read_back(config.model, device)
            except EngineError as error:
                outcome.reasons.append((EXIT_FAIL, f"{route} fails at load: {error}"))
                continue
            outcome.facts |= both.facts(engine) | {"route_resolved": "manual/mfma and fused/mfma"}
            outcome.lines.append(f"{route} at load: {text}")
            device.follow(engine, config.kv_dtype)
            for prompt, reference in references.items():
                with clock.stage("both kernels", f"{route} {prompt}"):
                    _run_one(outcome, both, engine, device, reference)
            engine.close()
    outcome.sure = (
        "both kernels computed every element of attn.out in every layer; judged against fp64 in "
        f"{len(both.layers)} of {both.oracle.config.layers} layers"
    )
    return outcome


def _routes(config: Config) -> Sequence[str]:
    """Both mfma routes, or the one asked for. Raises EngineError where the cache allows none."""
    given = dict(config.sources)["route"] != "default"
    chosen = (config.route,) if given else ("manual/mfma", "fused/mfma")
    for route in chosen:
        parsed = routes.Route.parse(route)
        routes.check(parsed, KV_TYPES[config.kv_dtype])
        if parsed.matmul != "mfma":
            raise UsageError(f"--route={route}: b3_21 is about mfma; use manual/mfma or fused/mfma")
    return chosen


def _read_back(model_path: str, device: ShadowDevice) -> str:
    """Every weight as the device holds it against the file. Raises EngineError at the first."""
    tensors = open_model(model_path).tensors
    total = 0
    for name, tensor in tensors.items():
        raw = np.ascontiguousarray(tensor.data).reshape(-1).view(np.uint8)
        if not np.array_equal(device.read(device.buffers[name], np.dtype(np.uint8), raw.size), raw):
            raise EngineError(f"{name} on the device is not the file's")
        total += raw.size
    return f"{len(tensors)} tensors, {total} bytes, read back equal to the file's"


def _run_one(
    outcome: Outcome, both: Opened, engine: Engine, device: ShadowDevice, reference: Reference
) -> None:
    name = f"{engine.route} {reference.prompt}"
    device.pairs.clear()
    got = _forced(both, engine, reference)
    layers_in_model, tokens = both.oracle.config.layers, len(reference.token_ids)
    attestation = engine.attest()
    if attestation.observed != str(engine.route) or len(device.pairs) != tokens * layers_in_model:
        text = f"{attestation.observed} executed, {len(device.pairs)} launches were shadowed"
        outcome.reasons.append((EXIT_INCONCLUSIVE, f"{name}: not attested: {text}"))
        return
    by_layer = [device.pairs[layer::layers_in_model] for layer in range(layers_in_model)]
    _check_vacuity(outcome, name, by_layer)
    shadow = _with_shadow(got, by_layer)
    kind = KV_TYPES[both.config.kv_dtype]
    valu, scales_L2K = routes.Route(engine.route.kernel, "valu"), engine.kv_scales_L2K
    of_valu = declared_precision(engine.config, valu, kind, scales_L2K=scales_L2K)
    seen = []
    for layer in both.layers:
        pair = [
            _judge(both, reference, side, precision, layer)
            for side, precision in ((got, engine.precision), (shadow, of_valu))
        ]
        apart = max(float(np.abs(p.mfma_TNH - p.valu_TNH).max()) for p in by_layer[layer])
        seen.append(Seen(layer, *pair, apart))
    outcome.tables.append(report.table_shadow(name, seen))
    outcome.verdicts[f"{name.replace('/', '_').replace(' ', '_')}"] = [s.mfma for s in seen]
    for one in seen:
        _report(outcome, name, one)
    counts = sum(p.mfma_executed for p in device.pairs), sum(p.valu_executed for p in device.pairs)
    most = max(float(np.abs(p.mfma_TNH - p.valu_TNH).max()) for p in device.pairs)
    outcome.lines.append(
        f"{name}: {len(device.pairs)} launches by both kernels; matrix-core instructions "
        f"{counts[0]} and {counts[1]}; largest difference in any layer {most:.3g}"
    )


def _forced(both: Opened, engine: Engine, reference: Reference) -> trace.Trace:
    """Decodes the oracle's tokens, every step tapped, so that every launch is seen."""
    stored = [site for site in NEEDED if site in engine.sites]
    taken = Taken(both.layers)
    layers = needed_layers(both.layers, both.oracle.config.layers)
    engine.reset()
    for token in reference.token_ids:
        taken.add(engine.step(token, Taps.of(stored, layers)).taps)
    return trace.Trace(reference.trace.run, taken.rows())


def _with_shadow(got: trace.Trace, by_layer: list[list[Pair]]) -> trace.Trace:
    """The same inputs, and what the vector kernel made of them."""
    rows = dict(got.rows_by_place)
    for layer, site in got.rows_by_place:
        if site == SITE:
            rows[layer, site] = np.concatenate([pair.valu_TNH for pair in by_layer[layer]])
    return replace(got, rows_by_place=rows)


def _judge(both: Opened, reference: Reference, side: trace.Trace, precision: dict, layer: int):
    ops = OracleArithmetic(both.oracle, both.oracle.config.dimensions, precision)
    declared = compare.Declared.of(both.oracle.config.dimensions, precision, [SITE])
    arithmetic = ops.as_arithmetic()
    return compare.judge_site(reference.trace, side, arithmetic, declared, layer, SITE)


def _check_vacuity(outcome: Outcome, name: str, by_layer: list[list[Pair]]) -> None:
    """Bits that are equal where the arithmetic must differ; names that the counts deny."""
    same = [
        layer
        for layer, pairs in enumerate(by_layer)
        if all(np.array_equal(pair.mfma_TNH, pair.valu_TNH) for pair in pairs)
    ]
    if same:
        text = f"{name}: vacuous: both kernels gave the same bits in layers {same}"
        outcome.reasons.append((EXIT_INCONCLUSIVE, text))
    pairs = [pair for pairs in by_layer for pair in pairs]
    if any(pair.valu_executed or not pair.mfma_executed for pair in pairs):
        text = f"{name}: vacuous: a shadow ran matrix cores, or what it shadows did not"
        outcome.reasons.append((EXIT_INCONCLUSIVE, text))


def _report(outcome: Outcome, name: str, seen: Seen) -> None:
    for kernel, found in (("mfma", seen.mfma), ("valu", seen.valu)):
        worst = found.worst
        outcome.events.append(
            {"event": "shadow", "run": name, "kernel": kernel, "layer": seen.layer}
            | {"verdict": str(found.status), "reason": worst.reason, "apart": seen.apart}
            | {"local_over_floor": max((j.ratio_max or 0.0) for j in found.judgements)}
        )
        place = f"{name}: {kernel} kernel, attn.out of layer {seen.layer}"
        if blamed := [j for j in found.judgements if j.blames_this_op]:
            where = f"{place}, position {blamed[0].key.position}"
            text = f"{where}: {blamed[0].status}, {blamed[0].reason}"
            outcome.reasons.append((EXIT_FAIL, text))
        elif found.status not in verdict.CLEAN:
            outcome.reasons.append(
                (EXIT_INCONCLUSIVE, f"{place} is {found.status}: {worst.reason}")
            )
