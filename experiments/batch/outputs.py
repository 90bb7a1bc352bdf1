"""What a run of a suite leaves for people and machines: JUnit XML, Markdown, and its record."""

import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.align import records
from experiments.align.errors import RecordError
from experiments.batch.cell import FAIL, PASS, Cell, Result, exit_code
from experiments.batch.history import Drift, Point
from experiments.report.page import number

VERDICTS = {
    0: "PASS",
    1: "FAIL",
    2: "REFUSED",
    3: "INCONCLUSIVE",
    4: "ORACLE NOT TRUSTED",
}
DRIFTS_SHOWN = 5
UNPRINTABLE = dict.fromkeys(i for i in range(32) if chr(i) not in "\t\n\r")


@dataclass(frozen=True)
class Night:
    """One run of a suite, finished or not. `results` are in the suite's order.

    trend: by cell, the night's worst margin over time. notes: what went wrong with the run itself.
    """

    suite: str
    command: str
    commit: str
    cells: Sequence[Cell]
    results: Sequence[Result]
    drifts: Sequence[Drift] = ()
    trend: dict[str, list[Point]] | None = None
    notes: Sequence[str] = ()

    @property
    def unfinished(self) -> list[Cell]:
        done = {result.cell.key for result in self.results}
        return [cell for cell in self.cells if cell.key not in done]

    @property
    def exit_code(self) -> int:
        return exit_code(list(self.results), len(self.cells))

    @property
    def verdict(self) -> str:
        return VERDICTS[self.exit_code]

    def sentences(self) -> list[str]:
        """The verdict in words."""
        counts = Counter(result.status for result in self.results)
        ended = ", ".join(f"{count} {status}" for status, count in counts.most_common())
        found = [f"{len(self.results)} of {len(self.cells)} cells ran: {ended or 'none'}."]
        for result in self.results:
            if result.status != PASS:
                found.append(f"{result.cell.name}: {result.status}; {_reason(result)}")
        if self.unfinished:
            names = ", ".join(cell.name for cell in self.unfinished[:5])
            more = f" and {len(self.unfinished) - 5} more" if len(self.unfinished) > 5 else ""
            found.append(f"not finished: {names}{more}; the same command goes on from here.")
        return found + [*self._drift_sentences(), *self.notes]

    def _drift_sentences(self) -> list[str]:
        """Those that grew most, after how many there are."""
        shown = [drift_sentence(drift) for drift in self.drifts[:DRIFTS_SHOWN]]
        if len(self.drifts) > DRIFTS_SHOWN:
            cells = len({drift.cell for drift in self.drifts})
            count = f"{len(self.drifts)} places of {cells} cells"
            shown = [f"drift: {count}; the {DRIFTS_SHOWN} that grew most:", *shown]
        return shown


def _reason(result: Result) -> str:
    """The most telling of a result's reasons, short enough for a line."""
    telling = [r for r in result.reasons if "first divergence" in r or "error" in r.lower()]
    text = (telling or list(result.reasons) or ["no reason was given"])[0]
    return text if len(text) <= 300 else f"{text[:297]}..."


def drift_sentence(drift: Drift) -> str:
    where = drift.site if drift.layer < 0 else f"{drift.site} of layer {drift.layer}"
    grown = "was exact" if not drift.baseline else f"{2**drift.octaves:.3g} times its usual"
    return (
        f"drift: {where} in {drift.name}: {number(drift.now)} of the floor ({grown} "
        f"{number(drift.baseline)}) since commit {drift.since[:12] or 'unknown'}; "
        f"last usual at {drift.last_good[:12] or 'unknown'}"
    )


def junit(night: Night) -> str:
    """JUnit XML: a test for each cell; doubt is an error, a cell that did not run is skipped."""
    wrong = sum(result.status == FAIL for result in night.results)
    doubt = sum(result.status not in (PASS, FAIL) for result in night.results)
    seconds = f"{sum(result.seconds for result in night.results):.3f}"
    counts = {"tests": str(len(night.cells)), "failures": str(wrong), "errors": str(doubt)}
    counts |= {"skipped": str(len(night.unfinished)), "time": seconds}
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(root, "testsuite", {"name": night.suite, **counts})
    for result in night.results:
        case = _case(suite, result.cell, result.seconds)
        if result.status != PASS:
            kind = "failure" if result.status == FAIL else "error"
            found = {"type": result.status, "message": _printable(_reason(result))}
            element = ElementTree.SubElement(case, kind, found)
            element.text = _printable("\n".join([*result.reasons, result.cell.shown_command()]))
    for cell in night.unfinished:
        ElementTree.SubElement(_case(suite, cell, 0.0), "skipped", {"message": "not finished"})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: ElementTree.Element, cell: Cell, seconds: float) -> ElementTree.Element:
    place = {"classname": _class_of(cell), "name": cell.name, "time": f"{seconds:.3f}"}
    return ElementTree.SubElement(suite, "testcase", place)


def _class_of(cell: Cell) -> str:
    """The class of a cell's test: its experiment and model."""
    return ".".join(part for part in ("experiments", cell.experiment, cell.model) if part)


def _printable(text: str) -> str:
    return text.translate(UNPRINTABLE)


def markdown(night: Night) -> str:
    """A summary for a pull request or a job page."""
    lines = [f"# {night.suite}: {night.verdict}", "", f"Commit `{night.commit or 'unknown'}`.", ""]
    lines += [f"- {_escaped(sentence)}" for sentence in night.sentences()]
    lines += ["", "| cell | verdict | worst local / floor | seconds | peak MiB |"]
    lines += ["|---|---|---:|---:|---:|"]
    for result in night.results:
        cells = (result.cell.name, _shown(result.status), _worst(result))
        numbers = f"{result.seconds:.1f} | {result.peak_rss_mb:.0f}"
        lines.append(f"| {' | '.join(map(_escaped, cells))} | {numbers} |")
    lines += [f"| {_escaped(cell.name)} | not finished | | | |" for cell in night.unfinished]
    return "\n".join([*lines, "", f"Again: `{night.command}`", ""])


def _shown(status: str) -> str:
    return status if status == PASS else f"**{status}**"


def _worst(result: Result) -> str:
    return number(max((ratio for *_, ratio in result.margins), default=None))


def _escaped(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;").replace("\n", " ")


def run_record(night: Night) -> dict:
    """The record of report.run_file, from which the page of a night is made."""
    trend = {name: [asdict(p) for p in points] for name, points in (night.trend or {}).items()}
    rows = [
        {
            **{"name": r.cell.name, "experiment": r.cell.experiment, "label": r.cell.label},
            **{"route": r.cell.route},
            **{"model": r.cell.model, "prompt": r.cell.prompt, "kv_dtype": r.cell.kv_dtype},
            **{"status": r.status, "seconds": r.seconds, "peak_rss_mb": r.peak_rss_mb},
            **{"worst": max((ratio for *_, ratio in r.margins), default=None)},
            **{"reason": "" if r.status == PASS else _reason(r), "folder": r.folder},
            "command": r.cell.shown_command(),
        }
        for r in night.results
    ]
    return {
        "experiment": "nightly",
        "exit_code": night.exit_code,
        "verdict": night.verdict,
        "command": night.command,
        "lines": night.sentences(),
        "seconds_total": sum(result.seconds for result in night.results),
        "facts": {"suite": night.suite, "commit": night.commit},
        "more": {"cells": rows, "trend": trend, "drifts": [asdict(d) for d in night.drifts]},
    }


def to_step_summary(text: str, path: str | None = None) -> None:
    """Appends the summary to the page of a GitHub job, where there is one. Raises RecordError."""
    path = path or os.environ.get("GITHUB_STEP_SUMMARY", "")
    if path:
        try:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise RecordError(f"cannot write {path}: {error.strerror}") from error


def write(folder: Path, night: Night) -> None:
    """nightly.xml and nightly.md, each whole. Raises RecordError."""
    records.write_whole(folder / "nightly.xml", junit(night))
    records.write_whole(folder / "nightly.md", markdown(night))
