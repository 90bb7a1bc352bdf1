"""`<experiment>_run.json`: a run in one record, which pages and nightly runs read.

Any experiment may write one; only `experiment`, `exit_code`, `verdict` and `command` are needed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from experiments.align import records
from experiments.align.errors import RecordError

NEEDED = ("experiment", "exit_code", "verdict", "command")


@dataclass(frozen=True)
class RunFile:
    """One run and the folder its files lie in.

    lines: the verdict in words. prompts: a record each, with the names of its files `records` and
    `maps`. routes: rows of the route matrix; expected: the oracle's two tokens by prompt. seconds:
    by stage. facts: what every record repeats. more: whatever an experiment adds for its own page.
    """

    folder: Path
    experiment: str
    exit_code: int
    verdict: str
    command: str
    lines: list[str] = field(default_factory=list)
    prompts: list[dict] = field(default_factory=list)
    routes: list[dict] = field(default_factory=list)
    expected: dict[str, list[int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    seconds_total: float = 0.0
    facts: dict = field(default_factory=dict)
    more: dict = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / f"{self.experiment}_run.json"


def write(folder: Path, run: Mapping) -> RunFile:
    """Writes the record whole and reads it back as what others will see. Raises RecordError."""
    path = folder / f"{run['experiment']}_run.json"
    records.write_whole(path, json.dumps(records.plain_values(run), indent=1) + "\n")
    return read(path)


def read(path: Path) -> RunFile:
    """Raises RecordError naming the file and what it lacks."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"cannot read {path} as a run: {' '.join(str(error).split())}") from error
    if not isinstance(stored, dict) or (lacking := [n for n in NEEDED if n not in stored]):
        lacks = ", ".join(lacking) if isinstance(stored, dict) else "everything"
        raise RecordError(f"{path} is not the record of a run: it lacks {lacks}")
    known = set(RunFile.__dataclass_fields__) - {"folder"}
    return RunFile(path.parent, **{name: stored[name] for name in stored if name in known})


def find(folder: Path) -> list[RunFile]:
    """The runs whose records lie in `folder`, the newest last."""
    paths = sorted(folder.glob("*_run.json"), key=lambda path: path.stat().st_mtime_ns)
    if not paths:
        raise RecordError(
            f"{folder} holds no *_run.json: run an experiment with --out_dir={folder}"
        )
    return [read(path) for path in paths]
