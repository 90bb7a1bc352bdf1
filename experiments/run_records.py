"""The records of one prompt of an alignment: JSONL, and the maps that a page draws."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from experiments import coverage
from experiments.align import (
    attn_verify,
    compare,
    divergence,
    records,
    sensitivity,
    sites,
    sources,
    stored_trace,
    verdict,
)
from experiments.align.verdict import Judgement
from experiments.alignment import Alignment, PromptResult
from experiments.kv_watch import BYTES, kv_slots
from experiments.outcome import VERDICTS
from experiments.report import maps
from greta_jax.graph import KV_SITES
from hip_engine.attestation import Op


def counts(judgements: list[Judgement]) -> dict[str, int]:
    found = divergence.counts(judgements)
    return {str(status): found[status] for status in verdict.Status if status in found}


def write(name: str, prompt: str, result: PromptResult, alignment: Alignment) -> dict:
    """Writes the records and maps of one prompt; returns their names for the run's record."""
    stem = f"{name}_{Path(prompt).stem}"
    path = alignment.config.out_path / f"{stem}_run_attn_verify.jsonl"
    shared = {"prompt_id": prompt, "prompt_sha256": result.reference.trace.run.prompt_sha256}
    shared |= {k: alignment.facts[k] for k in ("model_sha256", "commit", "code_object_sha256")}
    with records.JsonLines(path) as lines:
        config = alignment.config.as_record()
        lines.append({"event": "config", **shared, **alignment.facts, "config": config})
        for record in _records(result, alignment, shared | {"config": config}):
            lines.append(record)
        lines.append({"event": "summary", **shared, **_summary(result, alignment)})
    watched = result.run.watched if alignment.facts["kv_evidence"] != BYTES else ()
    drawn = maps.of(result.verdicts, watched[-1].layers if watched else ())
    drawn_path = maps.save(alignment.config.out_path / f"{stem}_maps.npz", drawn)
    return {"prompt": prompt, "records": path.name, "maps": drawn_path.name}


def save_traces(name: str, alignment: Alignment) -> None:
    """Both sides of every prompt, as `localize` and `align` read them."""
    policy = alignment.facts["oracle_policy"]
    entry = {"store": policy["activation"], "accumulate": policy["compute"]}
    cached = dict.fromkeys(KV_SITES, entry | {"store": policy["kv"]})
    for prompt, result in alignment.results.items():
        stem = alignment.config.out_path / f"{name}_{Path(prompt).stem}"
        sides = (
            ("ref", result.reference.trace, dict.fromkeys(sites.SITES, entry) | cached),
            ("got", result.run.trace, alignment.facts["engine_precision"]),
        )
        for side, found, precision in sides:
            more = {"prompt": prompt, "engine": side, "layers": alignment.layers}
            stored_trace.write(stem / side, found, precision, **more)


def _records(result: PromptResult, alignment: Alignment, shared: dict) -> Iterator[dict]:
    if alignment.config.attn_verify:
        yield from _attn_verify_records(result, alignment, shared)
    for found in result.verdicts:
        base = {"event": "site_verify", "layer": found.layer, "site": found.site}
        base |= {"name": sites.greta_name(found.site), "tokens": len(found.judgements)}
        worst = found.worst
        base |= _over_tokens(found)
        yield base | _place(worst) | attn_verify.judgement_fields(worst) | shared
        for judgement in found.judgements:
            if judgement.status in verdict.FAILED and judgement is not worst:
                fields = _place(judgement) | attn_verify.judgement_fields(judgement)
                yield base | {"event": "token_verify"} | fields | shared


def _over_tokens(found: compare.SiteVerdict) -> dict:
    """Over all tokens: the smallest error that would have been found in any element, and the
    largest share of what was inherited through each input."""
    seen = sensitivity.of(found)
    sized = [j for j in found.judgements if j.propagated]
    names = sized[0].through if sized else ()
    return {
        "smallest_error_detected": seen.absolute if seen else None,
        "smallest_error_detected_over_rms": seen.relative if seen else None,
        "propagated_max_all": max((j.propagated.max for j in sized), default=None),
        "through_max_all": {n: max(j.through[n].max for j in sized) for n in names},
    }


def _place(judgement: Judgement) -> dict:
    return {"token_id": judgement.key.token_id, "position": judgement.key.position}


def _attn_verify_records(result: PromptResult, alignment: Alignment, shared: dict):
    geometry = alignment.geometry
    context = attn_verify.Context(
        shared=shared,
        dims=alignment.dims,
        route_observed=result.run.attestation.observed,
        slots=kv_slots(geometry, len(result.reference.token_ids)),
        layer_stride_bytes=geometry.layer_stride_bytes,
    )
    by_step = {step.layers[0].position: step.layers for step in result.run.watched}
    for found in result.verdicts:
        if found.site != "attn.out":
            continue
        for judgement in found.judgements[result.reference.prompt_tokens :]:
            layers = by_step.get(judgement.key.position)
            invariants = layers[judgement.key.layer] if layers else None
            yield attn_verify.record(
                context, result.reference.trace, result.run.trace, judgement, invariants
            )


def _summary(result: PromptResult, alignment: Alignment) -> dict:
    found = divergence.first_divergence(result.judgements)
    attestation = result.run.attestation
    return {
        "verdict": VERDICTS[alignment.exit_code],
        "exit_code": alignment.exit_code,
        "reasons": [text for _, text in alignment.reasons()],
        "statuses": counts(result.judgements),
        "first_divergence": _divergence_record(found) if found else None,
        "next_tokens": result.next_tokens.record() if result.next_tokens else None,
        "coverage": coverage.of(alignment).record(),
        "floors": sources.records(sources.of(result.verdicts)),
        "cache_faults": [fault.record() for fault in result.cache_faults],
        "naming": result.explained.record() if result.explained else None,
        "kv_invariant_ok": not result.kv_errors if result.run.watched else None,
        "kv_evidence": alignment.facts["kv_evidence"],
        "route_observed": attestation.observed,
        "symbols": attestation.symbols,
        "attention_mfma": attestation.attention_mfma,
        "attention_contains": attestation.attention_contains,
        "accesses_seen": attestation.accesses_seen,
        "ops": [_op_record(op) for op in attestation.ops],
        "layers_judged": alignment.layers,
        "layers_in_model": alignment.dims["L"],
        "tokens": result.reference.token_ids,
        "prompt_tokens": result.reference.prompt_tokens,
        "top1_ref": result.reference.top1_T,
        "top1": result.run.top1_T,
        "free_tokens": result.run.free_tokens,
    }


def _op_record(op: Op) -> dict:
    return asdict(op) | {"registers": op.registers._asdict()}


def _divergence_record(found: divergence.Divergence) -> dict:
    key = found.first.key
    return {
        "layer": key.layer,
        "site": key.site,
        "position": key.position,
        "token_id": key.token_id,
        "kind": "local",
        "clean_before": found.clean_before,
        "judged_before": found.judged_before,
        "clean_layers": found.clean_layers,
        **attn_verify.judgement_fields(found.first),
    }
