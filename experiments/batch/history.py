"""Margins of every night in SQLite, and the drifts that show before anything fails."""

import contextlib
import math
import sqlite3
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments.batch.cell import Result
from experiments.batch.errors import HistoryError

VERSION = 1
WAIT_S = 60.0
WINDOW = 30
"""Nights a drift is measured over."""

SCHEMA = """
CREATE TABLE results (
  id TEXT PRIMARY KEY, suite TEXT NOT NULL, cell TEXT NOT NULL, name TEXT NOT NULL,
  commit_id TEXT NOT NULL, at TEXT NOT NULL, status TEXT NOT NULL, seconds REAL NOT NULL);
CREATE INDEX results_by_cell ON results (cell, at);
CREATE TABLE margins (
  result TEXT NOT NULL REFERENCES results (id), layer INTEGER NOT NULL, site TEXT NOT NULL,
  ratio REAL NOT NULL, PRIMARY KEY (result, layer, site)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Point:
    """The margin of one place on one night."""

    at: str
    commit: str
    ratio: float


@dataclass(frozen=True)
class Drift:
    """A margin that grew. `since` is the first commit above, `last_good` the one before it."""

    cell: str
    name: str
    layer: int
    site: str
    baseline: float
    now: float
    since: str
    last_good: str
    nights: int

    @property
    def octaves(self) -> float:
        return math.log2(self.now / self.baseline) if self.baseline else math.inf


class History:
    """The database of one path. Every method raises HistoryError with path and reason.

    Several runs may write at once: each result is one transaction, and adding it twice is harmless.
    """

    def __init__(self, path: Path):
        self.path = path

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None)
            try:
                connection.execute("BEGIN IMMEDIATE")
                self._prepare(connection)
                yield connection
                connection.execute("COMMIT")
            finally:
                connection.close()  # without COMMIT: nothing of this transaction happened
        except (sqlite3.Error, OSError) as error:
            raise HistoryError(
                f"history {self.path}: {error}; the results stay in the run's folder and are added "
                "by the next run with the same --out_dir"
            ) from error

    def _prepare(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            for statement in SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")
        elif version != VERSION:
            raise HistoryError(
                f"history {self.path} has version {version}, this program knows {VERSION}: "
                "choose another --history"
            )

    def add(self, suite: str, results: Iterable[Result]) -> None:
        """Adds what is not yet there."""
        with self._open() as connection:
            for result in results:
                row = (result.id, suite, result.cell.key, result.cell.name, result.commit)
                row += (result.at, result.status, result.seconds)
                connection.execute(
                    "INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row
                )
                connection.executemany(
                    "INSERT OR IGNORE INTO margins VALUES (?, ?, ?, ?)",
                    [(result.id, layer, site, ratio) for layer, site, ratio in result.margins],
                )

    def series(self, cell: str) -> dict[tuple[int, str], list[Point]]:
        """The last WINDOW points of every place of a cell, oldest first."""
        with self._open() as connection:
            nights = connection.execute(
                "SELECT id, at, commit_id FROM results WHERE cell = ? AND EXISTS "
                "(SELECT 1 FROM margins WHERE result = id) ORDER BY at DESC, id DESC LIMIT ?",
                (cell, WINDOW),
            ).fetchall()
            found: dict[tuple[int, str], list[Point]] = {}
            for identity, at, commit in reversed(nights):
                for layer, site, ratio in connection.execute(
                    "SELECT layer, site, ratio FROM margins WHERE result = ?", (identity,)
                ):
                    found.setdefault((layer, site), []).append(Point(at, commit, ratio))
        return found

    def drifts(self, cells: Iterable[tuple[str, str]], octaves: float) -> list[Drift]:
        """Every place of these (key, name) cells whose margin grew by more than `octaves`."""
        found = []
        for key, name in cells:
            for (layer, site), points in self.series(key).items():
                if drift := drift_of(points, octaves):
                    baseline, first = drift
                    before = points[first - 1].commit
                    now, since = points[-1], points[first]
                    place = key, name, layer, site
                    nights = len(points) - first
                    found.append(Drift(*place, baseline, now.ratio, since.commit, before, nights))
        return sorted(found, key=lambda drift: -drift.octaves)


def drift_of(points: list[Point], octaves: float) -> tuple[float, int] | None:
    """(baseline, index of the first point above it for good), or None if the last is not above.

    The baseline is the median of the older half: it does not move along with a drift.
    """
    if len(points) < 2:
        return None
    older = points[: max(1, len(points) // 2)]
    baseline = statistics.median(point.ratio for point in older)
    limit = baseline * 2.0**octaves
    first = len(points)
    while first > 0 and points[first - 1].ratio > limit:
        first -= 1
    return (baseline, first) if 0 < first < len(points) else None
