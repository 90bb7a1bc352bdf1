"""Runs cells as processes of this machine, within their time and memory."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.batch import outcome
from experiments.batch.cell import CRASH, MEMORY, TIMEOUT, Cell, Result

ROOT = Path(__file__).resolve().parent.parent.parent
POLL_S = 0.05
MIB = 2**20


# A killed parent takes its cell along, so that no cell runs unobserved. (util-linux's setpriv, as
# code between fork and exec would not be safe beside JAX's threads.)
DIES_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")


def _rss_bytes(session: int) -> int:
    """Resident memory of every process of a session; 0 where there is no /proc."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError, ValueError):
            continue  # it ended between the two looks
    return total


@dataclass
class Running:
    """A cell's process; it leads a session of its own."""

    cell: Cell
    folder: Path
    process: subprocess.Popen
    started: float
    peak_bytes: int = 0

    @classmethod
    def start(cls, cell: Cell, folder: Path) -> "Running":
        """Raises OSError if the folder or the process cannot be made."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{cell.experiment}_run.json").unlink(missing_ok=True)
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with (folder / "stdout.txt").open("w") as out, (folder / "stderr.txt").open("w") as err:
            process = subprocess.Popen(
                [*DIES_WITH_PARENT, *cell.command(folder)],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        return cls(cell, folder, process, time.monotonic())

    def poll(self) -> Result | None:
        """The result if it ended or went beyond a limit, which ends it."""
        seconds = time.monotonic() - self.started
        if (code := self.process.poll()) is not None:
            return outcome.result(self.cell, self.folder, code, seconds, self.peak_bytes / MIB)
        self.peak_bytes = max(self.peak_bytes, _rss_bytes(self.process.pid))
        status, why = "", ""
        if seconds > self.cell.timeout_s:
            status, why = TIMEOUT, f"ran longer than {self.cell.timeout_s:g} s"
        elif self.peak_bytes > self.cell.memory_mb * MIB:
            status, why = MEMORY, f"held more than {self.cell.memory_mb:g} MiB"
        if not status:
            return None
        self.kill()
        return Result(self.cell, status, None, seconds, self.peak_bytes / MIB, (why,))

    def kill(self) -> None:
        """Ends every process of the cell."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


def run(
    cells: Sequence[Cell],
    folder_of: Callable[[Cell], Path],
    jobs: int,
    started: Callable[[Cell], None] = lambda cell: None,
) -> Iterator[Result]:
    """Results as they come; closing the iterator ends every cell that still runs."""
    waiting, running = list(cells), []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                started(cell)
                try:
                    running.append(Running.start(cell, folder_of(cell)))
                except OSError as error:
                    yield Result(cell, CRASH, None, 0.0, 0.0, (f"cannot start: {error}",))
            for one in list(running):
                if result := one.poll():
                    running.remove(one)
                    yield result
            time.sleep(POLL_S)
    finally:
        for one in running:
            one.kill()
