"""Tensors of one file, as far as the file goes: safetensors and npz.

safetensors keeps its directory at the front, so a file that was cut off is readable up to the cut;
npz keeps it at the end, so nothing of a cut npz can be read.
"""

import json
import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.align.errors import TraceError

SUFFIXES = (".safetensors", ".npz")
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
LARGEST_HEADER = 100_000_000
"""The limit that the safetensors format sets itself, in bytes."""


@dataclass(frozen=True)
class TensorFile:
    """`tensors` by name; `lost` says why the rest could not be read, empty if nothing is lost."""

    path: Path
    tensors: dict[str, np.ndarray]
    lost: str = ""


def read(path: Path) -> TensorFile:
    """Every tensor that is whole. Raises TraceError for a file that is not of its format."""
    try:
        return _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror}") from error


def _read_npz(path: Path) -> TensorFile:
    head = path.read_bytes()[:4]
    if head and not b"PK\x03\x04".startswith(head):
        raise TraceError(f"{path} is not an npz file")
    tensors, lost = {}, ""
    try:
        with np.load(path, allow_pickle=False) as stored:
            for name in stored.files:
                tensors[name] = _float(path, name, stored[name])
    except (zipfile.BadZipFile, EOFError, ValueError, zlib.error) as error:
        reason = " ".join(str(error).split())
        lost = f"{path.name} is cut off or damaged ({reason}): {len(tensors)} tensors read"
    return TensorFile(path, tensors, lost)


def _float(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if not np.issubdtype(array.dtype, np.floating):
        raise TraceError(f"{path}: tensor {name!r} is {array.dtype}, not a floating-point type")
    return array


def _read_safetensors(path: Path) -> TensorFile:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            raise TraceError(f"{path} is not a safetensors file: a header of {length} bytes")
        header = file.read(length)
    if size < 8 + length or not length:
        return TensorFile(path, {}, f"{path.name} is cut off within its header")
    data = np.memmap(path, np.uint8, "r", 8 + length) if size > 8 + length else np.empty(0, "u1")
    tensors, missing = {}, 0
    for name, dtype, shape, begin, end in _entries(path, header):
        if end > len(data):
            missing += 1
            continue
        tensors[name] = _widened(data[begin:end].view(FLOATS[dtype]).reshape(shape), dtype)
    lost = f"{path.name} is cut off: {missing} of its {missing + len(tensors)} tensors are lost"
    return TensorFile(path, tensors, lost if missing else "")


def _entries(path: Path, header: bytes) -> Iterator[tuple[str, str, list[int], int, int]]:
    """name, dtype, shape, begin and end of every tensor. Raises TraceError."""
    try:
        parsed = json.loads(header)
        parsed.pop("__metadata__", None)
        entries = [(n, e["dtype"], e["shape"], *e["data_offsets"]) for n, e in parsed.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TraceError(f"{path}: its safetensors header is corrupt: {error!r}") from error
    for name, dtype, shape, begin, end in entries:
        if dtype not in FLOATS:
            known = ", ".join(FLOATS)
            raise TraceError(f"{path}: tensor {name!r} is {dtype}; supported are {known}")
        if not 0 <= begin <= end == begin + math.prod(shape) * np.dtype(FLOATS[dtype]).itemsize:
            raise TraceError(
                f"{path}: tensor {name!r} does not have the bytes of its shape {shape}"
            )
    yield from entries


def _widened(array: np.ndarray, dtype: str) -> np.ndarray:
    """bfloat16 as float32, which numpy has; it holds the same values."""
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else array
