"""What a nightly run shows: progress while it runs, a table and the verdict at its end."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from experiments.batch import outputs
from experiments.batch.cell import PASS, Cell, Result
from experiments.batch.options import Options
from experiments.batch.outputs import Night
from experiments.report.page import number

WIDTH = 118

Callbacks = tuple[Callable[[Cell], None], Callable[[Result], None]]


@contextlib.contextmanager
def progress(options: Options, cells: int, waiting: int) -> Iterator[Callbacks]:
    """(started, ended) callbacks that show how far the run is, on stderr."""
    console = Console(file=sys.stderr)
    if options.quiet:
        yield (lambda cell: None), (lambda result: None)
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task("cells", total=cells, completed=cells - waiting)
            yield (
                lambda cell: bar.update(task, description=cell.name),
                lambda result: bar.advance(task),
            )
    else:
        done, begun = [], time.monotonic()

        def ended(result: Result) -> None:
            done.append(result)
            left_s = (time.monotonic() - begun) / len(done) * (waiting - len(done))
            left = f", about {left_s:.0f} s left" if left_s >= 2 else ""
            count = f"{cells - waiting + len(done)}/{cells}"
            print(f"... {count} {result.cell.name}: {result.status}{left}", file=sys.stderr)

        yield (lambda cell: None), ended


def show(options: Options, night: Night) -> None:
    """The end of the run on stdout."""
    if options.output_format == "json":
        print(json.dumps(outputs.run_record(night)))
        return
    console = Console(width=None if Console().is_terminal else WIDTH)
    if not options.quiet:
        console.print(_table(night))
        for sentence in night.sentences():
            console.print(sentence, highlight=False, markup=False, soft_wrap=True)
        console.print(f"report: {options.out_dir / 'nightly.html'}", highlight=False)
        console.print(f"again: {night.command}", highlight=False, soft_wrap=True)
    last = f"nightly: {night.verdict} (exit {night.exit_code}), {len(night.results)} of "
    console.print(f"{last}{len(night.cells)} cells", highlight=False, soft_wrap=True)


def _table(night: Night) -> Table:
    table = Table(title=f"Suite {night.suite}", title_justify="left", title_style="bold")
    for name, side in (("cell", "left"), ("local/floor", "right"), ("seconds", "right")):
        table.add_column(name, justify=side, overflow="fold")
    table.add_column("MiB", justify="right")
    table.add_column("verdict")
    for result in night.results:
        worst = max((ratio for *_, ratio in result.margins), default=None)
        style = "green" if result.status == PASS else "bold red"
        numbers = (number(worst), f"{result.seconds:.1f}", f"{result.peak_rss_mb:.0f}")
        table.add_row(result.cell.name, *numbers, f"[{style}]{result.status}[/]")
    for cell in night.unfinished:
        table.add_row(cell.name, "-", "-", "-", "[yellow]not finished[/]")
    return table
