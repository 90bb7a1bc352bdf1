"""A trace file that holds every site read so far, whatever ends the process."""

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hip_engine.errors import TraceDamaged


class Record(NamedTuple):
    """One site of one row."""

    layer: int
    site: str
    sequence: int
    position: int
    token: int
    array: np.ndarray


class TraceFile:
    """Appends sites as they are read: `Taps.of(sites, layers, sink=trace.append)`.

    A record is a line of JSON and the raw bytes after it, handed to the system in one write before
    the next kernel is launched: a fault or SIGKILL loses nothing that was read. (A machine that
    loses power may.)
    """

    def __init__(self, path: str | Path):
        """Raises FileExistsError: a trace is never continued by another run."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._file = os.open(path, flags, 0o644)

    def append(self, layer: int, site: str, rows: Sequence, arrays: Sequence[np.ndarray]):
        for row, array in zip(rows, arrays, strict=True):
            raw = np.ascontiguousarray(array).tobytes()
            header = {
                "layer": layer,
                "site": site,
                **row._asdict(),
                "dtype": array.dtype.str,
                "shape": array.shape,
                "crc32": zlib.crc32(raw),
            }
            self._write(json.dumps(header).encode() + b"\n" + raw)

    def close(self):
        os.close(self._file)

    def _write(self, record: bytes):
        while record:
            record = record[os.write(self._file, record) :]


def read_trace(path: str | Path) -> Iterator[Record]:
    """The records of a trace; one that the end of the process cut off at the very end is left out.

    Raises:
      TraceDamaged: a record before the end is not what was written.
    """
    data, at = Path(path).read_bytes(), 0
    while (end := data.find(b"\n", at)) >= 0:
        first = at
        try:
            header = json.loads(data[at:end])
            count = int(np.prod(header["shape"]))
            dtype, shape = np.dtype(header["dtype"]), header["shape"]
            begin, at = end + 1, end + 1 + count * dtype.itemsize
            if at > len(data):
                return
            if zlib.crc32(data[begin:at]) != header["crc32"]:
                raise ValueError("its bytes have another crc32")
            place = [header[name] for name in Record._fields[:-1]]
        except (ValueError, KeyError, TypeError) as error:
            raise TraceDamaged(f"{path}: the record at byte {first} is damaged: {error}") from error
        yield Record(*place, np.frombuffer(data[begin:at], dtype).reshape(shape))
