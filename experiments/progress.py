"""What a run is doing, how long it will take, and where its time went."""

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from experiments.align import records
from experiments.align.errors import RecordError

LINES = 5
"""Progress lines of one long step where there is no terminal."""
WORTH_AN_ESTIMATE_S = 2.0


class Clock:
    """Adds up seconds by stage, and shows each stage on stderr while it runs, unless `quiet`.

    A stage that counts says how long it still takes; any other how long it took the last time.
    A stage within a stage is counted once: its seconds are not the outer one's too.
    """

    def __init__(self, quiet: bool = False):
        self.seconds: dict[str, float] = {}
        self.started = time.perf_counter()
        self._within: list[float] = []
        self._quiet = quiet
        self._console = Console(file=sys.stderr, quiet=quiet)
        self._last_time = LastTime()

    @property
    def total(self) -> float:
        return time.perf_counter() - self.started

    @contextlib.contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[None]:
        """Times a stage; stages of the same name add up."""
        text = f"{name} {detail}".strip()
        expected_s = self._last_time.seconds(text)
        if expected_s >= WORTH_AN_ESTIMATE_S:
            shown = f"{text}, about {expected_s:.0f} s"
        else:
            shown = text
        with self._timed(name, text), self._bar(SpinnerColumn()) as bar:
            if bar:
                bar.add_task(shown, total=None)
            else:
                self._say(shown)
            yield

    @contextlib.contextmanager
    def counted(self, name: str, detail: str) -> Iterator[Callable[[int, int], None]]:
        """Times a stage that reports `done` of `total`."""
        text, start = f"{name} {detail}", time.perf_counter()
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
        with self._timed(name, text), self._bar(*columns) as bar:
            if bar:
                task = bar.add_task(text, total=None)
                yield lambda done, total: bar.update(task, completed=done, total=total)
            else:
                yield lambda done, total: self._every_fifth(text, start, done, total)

    @contextlib.contextmanager
    def watching(self, parts: Iterable[tuple[object, str, str]]) -> Iterator[None]:
        """Times every call of (owner, function, stage) while the body runs, whoever makes it."""
        with contextlib.ExitStack() as undo:
            for owner, function, stage in parts:
                original = getattr(owner, function)
                undo.callback(setattr, owner, function, original)
                setattr(owner, function, self._as_stage(original, stage))
            yield

    def _as_stage(self, function: Callable, stage: str) -> Callable:
        @functools.wraps(function)
        def timed(*arguments, **named):
            with self._timed(stage, stage):
                return function(*arguments, **named)

        return timed

    @contextlib.contextmanager
    def _timed(self, name: str, text: str) -> Iterator[None]:
        """Adds the seconds of the body, less those of the stages within it, to a stage."""
        start = time.perf_counter()
        self._within.append(0.0)
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            own = spent - self._within.pop()
            if self._within:
                self._within[-1] += spent
            self.seconds[name] = self.seconds.get(name, 0.0) + own
            if own >= WORTH_AN_ESTIMATE_S:
                self._last_time.keep(text, own)

    def _bar(self, *columns) -> contextlib.AbstractContextManager:
        """A live line on a terminal, nothing elsewhere."""
        if self._quiet or not self._console.is_terminal:
            return contextlib.nullcontext()
        text = TextColumn("{task.description}")
        shown = (text, *columns, TimeElapsedColumn())
        return Progress(*shown, console=self._console, transient=True)

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(f"... {text}", file=sys.stderr, flush=True)

    def _every_fifth(self, text: str, start: float, done: int, total: int) -> None:
        step = max(1, -(-total // LINES))
        if done % step and done != total:
            return
        left_s = (time.perf_counter() - start) / done * (total - done)
        left = f", about {left_s:.0f} s left" if left_s >= WORTH_AN_ESTIMATE_S else ""
        self._say(f"{text} {done}/{total}{left}")


def stages_file() -> Path:
    """Where `LastTime` keeps what it knows."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "greta-jax" / "stages.json"


class LastTime:
    """How long stages took the last time, in the user's cache; losing it costs an estimate."""

    def __init__(self):
        self._path = stages_file()

    def seconds(self, stage: str) -> float:
        """0.0 if unknown."""
        found = self._stored().get(stage, 0.0)
        return float(found) if isinstance(found, (int, float)) else 0.0

    def keep(self, stage: str, seconds: float) -> None:
        stored = self._stored() | {stage: round(seconds, 1)}
        with contextlib.suppress(OSError, RecordError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            records.write_whole(self._path, json.dumps(stored))

    def _stored(self) -> dict:
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return stored if isinstance(stored, dict) else {}
