"""What an experiment found, whatever it asked: files, tables, the verdict and the exit code."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.align import attn_verify, records, report, sites, verdict
from experiments.align.compare import SiteVerdict
from experiments.flags import (
    EXIT_FAIL,
    EXIT_INCONCLUSIVE,
    EXIT_ORACLE,
    EXIT_PASS,
    UNREPEATED,
    Config,
)
from experiments.progress import Clock
from experiments.report import export, html, maps, pages, run_file

VERDICTS = {
    EXIT_PASS: "PASS",
    EXIT_FAIL: "FAIL",
    EXIT_INCONCLUSIVE: "INCONCLUSIVE",
    EXIT_ORACLE: "ORACLE NOT TRUSTED",
}


@dataclass
class Outcome:
    """One run of an experiment.

    own: its own flags, by name, as the repeating command writes them. facts: what a page shows.
    lines: what was found, in words. reasons: why not to pass, as (exit code, text). verdicts: by
    prompt, where tensors were judged. events: records for the JSONL. sure: how sure the verdict is,
    and what was not looked at.
    """

    name: str
    config: Config
    own: dict[str, str] = field(default_factory=dict)
    facts: dict = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    reasons: list[tuple[int, str]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    verdicts: dict[str, Sequence[SiteVerdict]] = field(default_factory=dict)
    events: list[dict] = field(default_factory=list)
    sure: str = ""
    width: int = report.WIDTH

    @property
    def exit_code(self) -> int:
        """The oracle's own failure outranks the engine's, and that outranks doubt."""
        return worst_code(code for code, _ in self.reasons)

    @property
    def command(self) -> str:
        """The command line that repeats this run, with every flag that is not a default."""
        return " ".join([f"python -m experiments.{self.name}", *given(self.config, self.own)])


def worst_code(codes: Iterable[int]) -> int:
    found = set(codes)
    order = (EXIT_ORACLE, EXIT_FAIL, EXIT_INCONCLUSIVE)
    return next((code for code in order if code in found), EXIT_PASS)


def given(config: Config, own: Mapping[str, str]) -> list[str]:
    """The flags of a run that are not defaults, as a command line has them."""
    sources, flags = dict(config.sources), []
    for flag, value in config.as_record().items():
        if sources.get(flag, "default") != "default" and flag not in UNREPEATED:
            text = ",".join(value) if isinstance(value, tuple) else value
            flags.append(f"--{flag}={text}")
    return flags + [f"--{flag}={value}" for flag, value in own.items() if value not in (None, "")]


def publish(outcome: Outcome, clock: Clock) -> int:
    """Prints the report, writes the files, and returns the exit code."""
    out_path = records.writable_dir(outcome.config.out_path)
    with clock.stage("records"):
        jsonl = _write_records(outcome, out_path / f"{outcome.name}.jsonl")
        prompts = [_write_maps(outcome, prompt, out_path) for prompt in outcome.verdicts]
        if prompts:
            prompts[0]["records"] = jsonl.name
        run = run_file.write(out_path, _run_record(outcome, prompts, clock))
        page = pages.page(run)
        written = [jsonl, run.path, html.write(out_path / f"{outcome.name}.html", page)]
        figures = outcome.config.figures
        written += export.write(Path(figures), page) if figures else []
    _show(outcome, run, clock, written)
    return outcome.exit_code


def last_lines(outcome: Outcome, written: Sequence[Path]) -> list[str]:
    """What, where, how sure, how to repeat it; the last line alone says pass or not."""
    lines = [*outcome.lines, *(text for _, text in outcome.reasons)]
    if outcome.sure:
        lines.append(f"how sure: {outcome.sure}")
    lines.append(f"written: {', '.join(map(str, written))}")
    lines.append(f"again: {outcome.command}")
    code = outcome.exit_code
    return [*lines, f"{outcome.name}: {VERDICTS[code]} (exit {code})"]


def _show(outcome: Outcome, run: run_file.RunFile, clock: Clock, written: list[Path]) -> None:
    config = outcome.config
    if config.output_format == "json":
        print(run.path.read_text(encoding="utf-8"), end="")
        return
    console = Console(width=None if Console().is_terminal else outcome.width)
    lines = last_lines(outcome, written)
    if config.quiet:
        lines = [*(text for _, text in outcome.reasons), lines[-1]]
    else:
        console.print(*outcome.tables, report.table_time(clock.seconds, clock.total), sep="\n")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _write_records(outcome: Outcome, path: Path) -> Path:
    """First the configuration, then what was seen, last the summary."""
    with records.JsonLines(path) as lines:
        config = outcome.config.as_record()
        lines.append({"event": "config", **outcome.facts, "config": config, "own": outcome.own})
        for event in outcome.events:
            lines.append(event)
        for prompt, found in outcome.verdicts.items():
            for site_verdict in found:
                lines.append(_site_record(prompt, site_verdict))
        summary = {"verdict": VERDICTS[outcome.exit_code], "exit_code": outcome.exit_code}
        reasons = [text for _, text in outcome.reasons]
        lines.append({"event": "summary", **summary, "reasons": reasons, "lines": outcome.lines})
    return path


def _site_record(prompt: str, found: SiteVerdict) -> dict:
    worst = found.worst
    place = {"layer": found.layer, "site": found.site, "name": sites.greta_name(found.site)}
    counted = {"prompt_id": prompt, "tokens": len(found.judgements)}
    where = {"position": worst.key.position, "token_id": worst.key.token_id}
    judged = attn_verify.judgement_fields(worst)
    return {"event": "site_verify"} | place | counted | where | judged


def _write_maps(outcome: Outcome, prompt: str, out_path: Path) -> dict:
    path = out_path / f"{outcome.name}_{Path(prompt).stem}_maps.npz"
    return {"prompt": prompt, "maps": maps.save(path, maps.of(outcome.verdicts[prompt])).name}


def _run_record(outcome: Outcome, prompts: list[dict], clock: Clock) -> dict:
    reasons = [text for _, text in outcome.reasons]
    sure = [f"How sure: {outcome.sure}"] if outcome.sure else []
    return {
        "experiment": outcome.name,
        "exit_code": outcome.exit_code,
        "verdict": VERDICTS[outcome.exit_code],
        "command": outcome.command,
        "lines": [*outcome.lines, *reasons, *sure],
        "prompts": prompts,
        "seconds": clock.seconds,
        "seconds_total": clock.total,
        "facts": outcome.facts,
        "more": {"tables": [report.as_record(table) for table in outcome.tables]},
    }


def reasons_of(verdicts: Sequence[SiteVerdict]) -> list[tuple[int, str]]:
    """Why these verdicts are no pass: the worst failure, the first that is undecided, or nothing
    judged at all."""
    judgements = [j for found in verdicts for j in found.judgements]
    reasons = []
    if failed := [j for j in judgements if j.status in verdict.FAILED]:
        worst = verdict.worst(failed)
        place = f"{sites.name(worst.key.layer, worst.key.site)}, position {worst.key.position}"
        text = f"{len(failed)} tensors failed; worst {place}: {worst.status}, {worst.reason}"
        reasons.append((EXIT_FAIL, text))
    if undecided := [j for j in judgements if j.status in verdict.UNDECIDED]:
        first = undecided[0]
        unclosed = first.closure_ratio is not None and first.closure_ratio > 1
        place = sites.name(first.key.layer, first.key.site)
        others = f" (and {len(undecided) - 1} more)" if len(undecided) > 1 else ""
        text = f"{place} is {first.status}: {first.reason}{others}"
        reasons.append((EXIT_ORACLE if unclosed else EXIT_INCONCLUSIVE, text))
    if not any(j.status in verdict.CLEAN for j in judgements):
        reasons.append((EXIT_INCONCLUSIVE, "no tensor was judged clean"))
    return reasons
