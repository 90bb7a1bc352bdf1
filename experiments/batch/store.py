"""Results of a run in its folder: a JSONL that survives a kill, a full disk and a second run."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from experiments.align import records
from experiments.align.errors import RecordError
from experiments.batch.cell import Result
from experiments.batch.errors import RunLocked

RESULTS = "results.jsonl"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder for one run. Raises RunLocked if another run has it."""
    records.writable_dir(folder)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunLocked(
                f"another run writes to {folder}: wait for it, or choose another --out_dir"
            ) from error
        yield


def append(folder: Path, result: Result) -> None:
    """Adds one whole line that is on the disk when this returns. Raises RecordError.

    A line that an earlier run left torn is closed first, so that nothing after it is lost.
    """
    path = folder / RESULTS
    line = json.dumps(records.plain_values(result.as_record()), allow_nan=False) + "\n"
    try:
        with path.open("ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RecordError(f"cannot write {path}: {error.strerror}") from error


def read(folder: Path) -> list[Result]:
    """Every whole result, oldest first; torn lines are skipped."""
    path = folder / RESULTS
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from error
    found = []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found.append(Result.from_record(json.loads(line)))
    return found
