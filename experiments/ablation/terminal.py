"""Prints a study and writes its files."""

from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from experiments.ablation import outputs
from experiments.ablation import study as studied
from experiments.ablation.study import Study
from experiments.align import report
from experiments.progress import Clock
from experiments.report import ablation_page, export, html, run_file
from experiments.report.page import Table

WIDTH = 118
SHOWN = 24
"""Rows on the terminal; the files have all."""


def publish(study: Study, command: str, clock: Clock) -> int:
    """Writes CSV, JSONL, record and page; prints tables and answers; returns the exit code."""
    config = study.config
    with clock.stage("records"):
        written = outputs.write(config.out_path, study.costs, study.summaries)
        run = run_file.write(config.out_path, studied.record(study, command, clock))
        page = ablation_page.page(run)
        written += [run.path, html.write(config.out_path / "precision_ablation.html", page)]
        written += export.write(Path(config.figures), page) if config.figures else []
    if config.output_format == "json":
        print(run.path.read_text(encoding="utf-8"), end="")
        return study.exit_code
    console = Console(width=None if Console().is_terminal else WIDTH)
    if not config.quiet:
        for title, table in studied.tables(study):
            console.print(_rich(title, table))
        console.print(report.table_time(clock.seconds, clock.total))
    lines = [*run.lines, f"written: {', '.join(map(str, written))}", f"again: {command}"]
    counted = f"{len(study.costs)} policies on {study.facts['tokens']} tokens"
    last = f"precision_ablation: {run.verdict} (exit {study.exit_code}), {counted} in "
    last += f"{clock.total:.0f} s"
    for line in [last] if config.quiet else [*lines, last]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return study.exit_code


def _rich(title: str, table: Table) -> RichTable:
    shown = RichTable(title=title, title_justify="left", title_style="bold")
    cells = table.cells()[:SHOWN]
    for index, column in enumerate(table.columns):
        numeric = bool(cells) and cells[0][index].kind == "number"
        side = "right" if numeric else "left"
        shown.add_column(column, justify=side, overflow="fold", no_wrap=index == 0)
    styles = {"good": "green", "bad": "bold red"}
    for row in cells:
        shown.add_row(
            *(f"[{styles[c.tone]}]{c.text}[/]" if c.tone in styles else c.text for c in row)
        )
    if len(table.rows) > SHOWN:
        shown.caption = f"{len(table.rows) - SHOWN} more in the files"
    return shown
