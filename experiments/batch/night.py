"""One night: which cells still have to run, running them, and what is written after each."""

import datetime
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from experiments.align.errors import AlignError
from experiments.batch import cluster, local, outputs, store
from experiments.batch.cell import Cell, Result
from experiments.batch.history import History, Point
from experiments.batch.options import Options
from experiments.batch.outputs import Night
from experiments.batch.suite import Suite
from experiments.report import export, html, pages, run_file


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


class Runner:
    """A suite in one folder. `results` grow while it runs; each is on the disk before the next.

    Once a result cannot be written, `unsaved`, it is still shown, and no further cell starts.
    """

    def __init__(self, suite: Suite, options: Options, at_commit: str):
        self.suite, self.options, self.commit = suite, options, at_commit
        self.history = History(options.history)
        self.notes: list[str] = []
        self.unsaved = False
        wanted = {cell.key: cell for cell in suite.cells}
        self._done: dict[str, Result] = {}
        earlier = store.read(options.out_dir)
        for result in earlier:
            if result.cell.key in wanted and result.commit == at_commit and not options.fresh:
                self._done[result.cell.key] = result
        self._noting(self.history.add, suite.name, earlier)

    @property
    def results(self) -> list[Result]:
        return [self._done[c.key] for c in self.suite.cells if c.key in self._done]

    @property
    def waiting(self) -> list[Cell]:
        return [cell for cell in self.suite.cells if cell.key not in self._done]

    def folder_of(self, cell: Cell) -> Path:
        return (self.options.out_dir / "cells" / cell.key).absolute()

    def run(self, started: Callable[[Cell], None], ended: Callable[[Result], None]) -> None:
        """Runs every waiting cell; an interruption ends them and leaves what was finished."""
        options = self.options
        if options.executor == "ray":
            coming = cluster.run(self.waiting, self.folder_of, options.ray_address, started)
        else:
            coming = local.run(self.waiting, self.folder_of, options.jobs, started)
        try:
            for result in coming:
                if not self._keep(result):
                    break
                ended(result)
        except KeyboardInterrupt:
            self.notes.append("interrupted: cells that were running are not counted")
        finally:
            coming.close()

    def _keep(self, result: Result) -> bool:
        """Whether the result is safe on the disk."""
        folder = str(self.folder_of(result.cell))
        result = replace(result, commit=self.commit, at=now(), folder=folder)
        self._done[result.cell.key] = result
        safe = self._noting(store.append, self.options.out_dir, result)
        self.unsaved |= not safe
        self._noting(self.history.add, self.suite.name, [result])
        self._noting(outputs.write, self.options.out_dir, self.night())
        return safe

    def _noting(self, function: Callable, *arguments) -> bool:
        """Calls it; an error becomes a note, once."""
        try:
            function(*arguments)
        except AlignError as error:
            note = " ".join(str(error).split())
            if note not in self.notes:
                self.notes.append(note)
            return False
        return True

    def night(self, with_history: bool = False) -> Night:
        """The state of the run."""
        drifts, trend = [], {}
        if with_history:
            cells = [(cell.key, cell.name) for cell in self.suite.cells]
            try:
                drifts = self.history.drifts(cells, self.suite.drift_octaves)
                trend = {name: self._worst(key) for key, name in cells}
            except AlignError as error:
                self.notes.append(" ".join(str(error).split()))
        shared = dict(cells=self.suite.cells, results=self.results, notes=tuple(self.notes))
        command = f"python -m experiments.nightly --suite={self.suite.path}"
        return Night(self.suite.name, command, self.commit, drifts=drifts, trend=trend, **shared)

    def _worst(self, cell: str) -> list[Point]:
        """The worst margin of each night."""
        nights: dict[str, Point] = {}
        for points in self.history.series(cell).values():
            for point in points:
                if point.at not in nights or nights[point.at].ratio < point.ratio:
                    nights[point.at] = point
        return [nights[at] for at in sorted(nights)]

    def finish(self) -> Night:
        """Writes everything at the end; what cannot be written is a note."""
        night, folder = self.night(with_history=True), self.options.out_dir
        self._noting(outputs.write, folder, night)
        self._noting(outputs.to_step_summary, outputs.markdown(night))
        self._noting(self._write_page, folder, night)
        return replace(night, notes=tuple(self.notes))

    def _write_page(self, folder: Path, night: Night) -> None:
        page = pages.page(run_file.write(folder, outputs.run_record(night)))
        html.write(folder / "nightly.html", page)
        if self.options.figures:
            export.write(Path(self.options.figures), page)
