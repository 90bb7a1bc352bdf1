"""What an alignment leaves behind: the report on the terminal, records, maps and the page."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console, RenderableType

from experiments import coverage
from experiments.align import (
    attn_verify,
    cache_blame,
    compare,
    divergence,
    floors_file,
    records,
    report,
    sensitivity,
    sites,
    sources,
    stored_trace,
    verdict,
)
from experiments.align.verdict import Judgement
from experiments.alignment import Alignment, PromptResult
from experiments.flags import (
    EXIT_FAIL,
    EXIT_INCONCLUSIVE,
    EXIT_ORACLE,
    EXIT_PASS,
    UNREPEATED,
)
from experiments.progress import Clock
from experiments.report import alignment_page, export, html, maps, run_file
from experiments.under_test import kv_slots
from greta_jax.graph import KV_SITES

VERDICTS = {
    EXIT_PASS: "PASS",
    EXIT_FAIL: "FAIL",
    EXIT_INCONCLUSIVE: "INCONCLUSIVE",
    EXIT_ORACLE: "ORACLE NOT TRUSTED",
}


def publish(name: str, alignment: Alignment, clock: Clock) -> int:
    """Prints the report, writes the files, and returns the exit code."""
    out_path = alignment.config.out_path
    with clock.stage("records"):
        prompts = [
            _write_prompt(name, prompt, result, alignment)
            for prompt, result in alignment.results.items()
        ]
        run = run_file.write(out_path, _run_record(name, alignment, prompts, clock))
        page = alignment_page.page(run)
        html_path = html.write(out_path / f"{name}.html", page)
        if alignment.config.save_traces:
            _save_traces(name, alignment)
        figures = alignment.config.figures
        drawn = export.write(Path(figures), page) if figures else []
    paths = [out_path / written["records"] for written in prompts]
    paths += [run.path, html_path, *drawn]
    if to := alignment.config.save_floors:
        paths.append(floors_file.write(Path(to), alignment.floors))
    summary = out_path / f"{name}_matrix_summary.txt"
    paths.append(summary)
    tables = [*_tables(alignment), report.table_time(clock.seconds, clock.total)]
    last_lines = "\n".join(verdict_lines(name, alignment, paths))
    records.write_whole(summary, f"{report.plain(*tables)}{last_lines}\n")
    _show(alignment, run, tables, last_lines)
    return alignment.exit_code


def _show(alignment: Alignment, run: run_file.RunFile, tables: list, last_lines: str) -> None:
    """Prints the report: one JSON record, the verdict and its reasons alone, or everything."""
    if alignment.config.output_format == "json":
        print(run.path.read_text(encoding="utf-8"), end="")
        return
    console = Console(width=None if Console().is_terminal else report.WIDTH)
    if alignment.config.quiet:
        reasons = [text for _, text in alignment.reasons()]
        last_lines = "\n".join([*reasons, last_lines.splitlines()[-1]])
    else:
        console.print(*tables, sep="\n")
    console.print(last_lines, highlight=False, markup=False, soft_wrap=True)


def _tables(alignment: Alignment) -> Iterator[RenderableType]:
    verdicts = {prompt: result.verdicts for prompt, result in alignment.results.items()}
    yield report.table_a(verdicts, "attn.out")
    yield report.table_through(verdicts, "attn.out")
    yield report.table_sites(verdicts)
    steps = {
        prompt: [watched.layers for watched in result.run.watched]
        for prompt, result in alignment.results.items()
    }
    if any(steps.values()):
        yield report.table_b(steps, alignment.layers)
    expected = {prompt: r.reference.expected for prompt, r in alignment.results.items()}
    yield report.table_c(alignment.routes, expected)


def verdict_lines(name: str, alignment: Alignment, written: list[Path]) -> list[str]:
    """The last lines: what, where, what was clean, what was not looked at, and how to repeat it."""
    lines = _findings(alignment)
    lines.append(f"written: {', '.join(map(str, written))}")
    lines.append(f"again: {command(name, alignment)}")
    code = alignment.exit_code
    scope = f"{len(alignment.layers)} of {alignment.dims['L']} layers judged"
    lines.append(f"{name}: {VERDICTS[code]} (exit {code}), {scope}")
    return lines


def _findings(alignment: Alignment) -> list[str]:
    """What was judged, what each prompt showed, and every reason not to pass."""
    lines = [_coverage(alignment)]
    for prompt, result in alignment.results.items():
        lines.append(f"{prompt}: {_tokens(result)}")
        if found := divergence.first_divergence(result.judgements):
            lines.append(f"{prompt}: {found.sentence()}")
        if result.verdicts:
            lines.append(f"{prompt}: {sources.sentence(sources.of(result.verdicts))}")
        blamed = cache_blame.sentences(result.cache_faults)
        lines += [f"{prompt}: {text}" for text in blamed]
        if result.explained:
            lines += [f"{prompt}: {text}" for text in result.explained.sentences()]
        if result.next_tokens:
            lines += [f"{prompt}: {text}" for text in result.next_tokens.sentences()]
    tighter = [c for c in alignment.floor_changes if c.saved is not None and not c.looser]
    lines += [change.sentence() for change in tighter[:1]]
    lines += coverage.of(alignment).sentences()
    return lines + [text for _, text in alignment.reasons()]


def _run_record(name: str, alignment: Alignment, prompts: list[dict], clock: Clock) -> dict:
    """The record of report.run_file: what a page or a nightly run needs of this one."""
    code = alignment.exit_code
    results = alignment.results.items()
    return {
        "experiment": name,
        "exit_code": code,
        "verdict": VERDICTS[code],
        "command": command(name, alignment),
        "lines": _findings(alignment),
        "prompts": prompts,
        "floors": {p: sources.records(sources.of(r.verdicts)) for p, r in results},
        "coverage": coverage.of(alignment).record(),
        "next_tokens": {p: r.next_tokens.record() for p, r in results if r.next_tokens},
        "naming": {p: r.explained.record() for p, r in results if r.explained},
        "routes": [asdict(route) for route in alignment.routes],
        "expected": {prompt: list(result.reference.expected) for prompt, result in results},
        "seconds": clock.seconds,
        "seconds_total": clock.total,
        "facts": alignment.facts,
    }


def _coverage(alignment: Alignment) -> str:
    judgements = [j for result in alignment.results.values() for j in result.judgements]
    judged = sum(j.status != verdict.Status.FUSED for j in judgements)
    fused = sorted({j.key.site for j in judgements if j.status == verdict.Status.FUSED})
    counts = ", ".join(f"{count} {status}" for status, count in _counts(judgements).items())
    unstored = f"; not stored by the engine: {', '.join(fused)}" if fused else ""
    return f"judged {judged} tensors, every token: {counts}{unstored}"


def _counts(judgements: list[Judgement]) -> dict[str, int]:
    counts = divergence.counts(judgements)
    return {str(status): counts[status] for status in verdict.Status if status in counts}


def _tokens(result: PromptResult) -> str:
    reference, start = result.reference, result.reference.prompt_tokens
    same = len(reference.token_ids) - len(result.flips)
    forced, free = reference.token_ids[start:], result.run.free_tokens
    ran = "equal to" if forced == free else f"{list(free)} instead of"
    return (
        f"{start} prompt + {len(forced)} decoded tokens, same top-1 at {same} of "
        f"{len(reference.token_ids)}; free-running tokens {ran} the oracle's {list(forced)}"
    )


def command(name: str, alignment: Alignment) -> str:
    """The command line that repeats this run, with every flag that is not a default."""
    sources = dict(alignment.config.sources)
    flags = []
    for flag, value in alignment.config.as_record().items():
        if sources.get(flag, "default") != "default" and flag not in UNREPEATED:
            text = ",".join(value) if isinstance(value, tuple) else value
            flags.append(f"--{flag}={text}")
    return " ".join([f"python -m experiments.{name}", *flags])


def _write_prompt(name: str, prompt: str, result: PromptResult, alignment: Alignment) -> dict:
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
    last_step = result.run.watched[-1].layers if result.run.watched else ()
    drawn = maps.of(result.verdicts, last_step)
    drawn_path = maps.save(alignment.config.out_path / f"{stem}_maps.npz", drawn)
    return {"prompt": prompt, "records": path.name, "maps": drawn_path.name}


def _save_traces(name: str, alignment: Alignment) -> None:
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
        base |= _sensitivity(found)
        yield base | _place(worst) | attn_verify.judgement_fields(worst) | shared
        for judgement in found.judgements:
            if judgement.status in verdict.FAILED and judgement is not worst:
                fields = _place(judgement) | attn_verify.judgement_fields(judgement)
                yield base | {"event": "token_verify"} | fields | shared


def _sensitivity(found: compare.SiteVerdict) -> dict:
    """The smallest error that would have been found there, in any element of any token."""
    seen = sensitivity.of(found)
    return {
        "smallest_error_detected": seen.absolute if seen else None,
        "smallest_error_detected_over_rms": seen.relative if seen else None,
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
        "statuses": _counts(result.judgements),
        "first_divergence": _divergence_record(found) if found else None,
        "next_tokens": result.next_tokens.record() if result.next_tokens else None,
        "coverage": coverage.of(alignment).record(),
        "cache_faults": [fault.record() for fault in result.cache_faults],
        "naming": result.explained.record() if result.explained else None,
        "kv_invariant_ok": not result.kv_errors if result.run.watched else None,
        "route_observed": attestation.observed,
        "symbols": attestation.symbols,
        "attention_mfma": attestation.attention_mfma,
        "layers_judged": alignment.layers,
        "layers_in_model": alignment.dims["L"],
        "tokens": result.reference.token_ids,
        "prompt_tokens": result.reference.prompt_tokens,
        "top1_ref": result.reference.top1_T,
        "top1": result.run.top1_T,
        "free_tokens": result.run.free_tokens,
    }


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
