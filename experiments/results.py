"""What an alignment leaves behind: the report on the terminal, records, maps and the page."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console, RenderableType

from experiments import certainty, coverage, run_records
from experiments.align import (
    cache_blame,
    divergence,
    floors_file,
    records,
    report,
    sources,
    verdict,
)
from experiments.alignment import Alignment, PromptResult
from experiments.flags import UNREPEATED
from experiments.outcome import VERDICTS
from experiments.progress import Clock
from experiments.report import alignment_page, export, html, run_file


def publish(name: str, alignment: Alignment, clock: Clock) -> int:
    """Prints the report, writes the files, and returns the exit code."""
    out_path = alignment.config.out_path
    with clock.stage("records"):
        prompts = [
            run_records.write(name, prompt, result, alignment)
            for prompt, result in alignment.results.items()
        ]
        run = run_file.write(out_path, _run_record(name, alignment, prompts, clock))
        page = alignment_page.page(run)
        html_path = html.write(out_path / f"{name}.html", page)
        if alignment.config.save_traces:
            run_records.save_traces(name, alignment)
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
    """The last lines: what, where, what was not looked at, how sure, and how to repeat it."""
    lines = [*_findings(alignment), f"how sure: {certainty.sentence(alignment)}"]
    lines.append(f"written: {', '.join(map(str, written))}")
    for prompt, folder in alignment.bundles.items():
        lines.append(f"{prompt}: that op alone: python -m experiments.replay_op --bundle={folder}")
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
        "lines": [*_findings(alignment), f"How sure: {certainty.sentence(alignment)}"],
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
    counts = ", ".join(
        f"{count} {status}" for status, count in run_records.counts(judgements).items()
    )
    unstored = f"; not stored by the engine: {', '.join(fused)}" if fused else ""
    return f"judged {judged} tensors, every token: {counts}{unstored}"


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
