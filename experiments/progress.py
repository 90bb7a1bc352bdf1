"""What a run is doing and where its time went."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LINES = 5
"""Progress lines of one long step where there is no terminal."""


class Clock:
    """Adds up seconds by stage, and shows each stage on stderr while it runs."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.started = time.perf_counter()
        self._console = Console(file=sys.stderr)

    @property
    def total(self) -> float:
        return time.perf_counter() - self.started

    @contextlib.contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[None]:
        """Times a stage; stages of the same name add up."""
        text = f"{name} {detail}".strip()
        start = time.perf_counter()
        status = self._console.status(text) if self._console.is_terminal else _line(text)
        try:
            with status:
                yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    @contextlib.contextmanager
    def counted(self, name: str, detail: str) -> Iterator[Callable[[int, int], None]]:
        """Times a stage that reports `done` of `total`."""
        start = time.perf_counter()
        text = f"{name} {detail}"
        try:
            if self._console.is_terminal:
                columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
                bar = Progress(*columns, TimeElapsedColumn(), console=self._console, transient=True)
                with bar:
                    task = bar.add_task(text, total=None)
                    yield lambda done, total: bar.update(task, completed=done, total=total)
            else:
                yield lambda done, total: _every_fifth(text, done, total)
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent


@contextlib.contextmanager
def _line(text: str) -> Iterator[None]:
    print(f"... {text}", file=sys.stderr, flush=True)
    yield


def _every_fifth(text: str, done: int, total: int) -> None:
    step = max(1, -(-total // LINES))
    if done % step == 0 or done == total:
        print(f"... {text} {done}/{total}", file=sys.stderr, flush=True)
