"""Results on disk: JSONL that survives a crash line by line, and files that appear whole."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.align.errors import RecordError


def plain_values(value):
    """NumPy values as JSON; a NaN or an infinity as a string, for which JSON has no number."""
    if isinstance(value, dict):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain_values(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value


class JsonLines:
    """Appends one record a line, flushed, so that a run cut off is readable up to the cut."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise RecordError(f"cannot write {path}: {error.strerror}") from error

    def append(self, record: dict) -> None:
        self._file.write(json.dumps(plain_values(record), allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *_) -> None:
        self.sync()
        self._file.close()


def read(path: Path) -> Iterator[dict]:
    """Records up to the first line that is not whole."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                return
            if not line.endswith("\n"):
                return
            yield record


def write_whole(path: Path, text: str) -> None:
    """Writes `text` to a neighbour and renames it: readers see the old file or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise RecordError(f"cannot write {path}: {error.strerror}") from error


def writable_dir(path: Path) -> Path:
    """Makes the directory and proves that a file can be written there. Raises RecordError."""
    probe = path / f".probe.{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RecordError(
            f"cannot write to out_dir {path}: {reason}; choose another with --out_dir"
        ) from error
    return path
