"""The header of a GGUF file, read with every count checked against the bytes that are there.

gguf.GGUFReader trusts the counts in the file; this walk does not, so a corrupt header costs an
error and no memory. Layout: github.com/ggml-org/ggml/blob/master/docs/gguf.md. Tests compare the
result with gguf.GGUFReader's.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from greta_jax.errors import GgufError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
SMALLEST_KEY_BYTES = 8 + 4 + 1
SMALLEST_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8

SCALARS: dict[int, np.dtype] = {
    GGUFValueType.UINT8: np.dtype("<u1"),
    GGUFValueType.INT8: np.dtype("<i1"),
    GGUFValueType.UINT16: np.dtype("<u2"),
    GGUFValueType.INT16: np.dtype("<i2"),
    GGUFValueType.UINT32: np.dtype("<u4"),
    GGUFValueType.INT32: np.dtype("<i4"),
    GGUFValueType.FLOAT32: np.dtype("<f4"),
    GGUFValueType.UINT64: np.dtype("<u8"),
    GGUFValueType.INT64: np.dtype("<i8"),
    GGUFValueType.FLOAT64: np.dtype("<f8"),
    GGUFValueType.BOOL: np.dtype("<u1"),
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. `shape` is row-major (`ne` reversed), `offset` from the file's start."""

    name: str
    shape: tuple[int, ...]
    dtype: GGMLQuantizationType
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """Metadata values (arrays of numbers as numpy, of strings as list) and tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    alignment: int
    data_offset: int


class Cursor:
    """Bounds-checked little-endian reads from a mapped file. Raises GgufError past its end."""

    def __init__(self, data: mmap.mmap, path: str):
        self.data, self.path, self.offset, self.size = data, path, 0, len(data)

    def fail(self, what: str, remedy: str = "fetch or convert the file again") -> GgufError:
        return GgufError(what, where=self.path, remedy=remedy)

    def take(self, nbytes: int, what: str) -> int:
        """Offset of the next `nbytes`, which are then behind the cursor."""
        start = self.offset
        if nbytes < 0 or start + nbytes > self.size:
            raise self.fail(f"truncated: {what} at byte {start} does not fit {self.size} bytes")
        self.offset = start + nbytes
        return start

    def u32(self, what: str) -> int:
        return struct.unpack_from("<I", self.data, self.take(4, what))[0]

    def u64(self, what: str) -> int:
        return struct.unpack_from("<Q", self.data, self.take(8, what))[0]

    def string(self, what: str) -> str:
        nbytes = self.u64(what)
        start = self.take(nbytes, what)
        try:
            return self.data[start : start + nbytes].decode()
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} at byte {start} is not UTF-8") from error

    def count(self, smallest_bytes: int, what: str) -> int:
        """A count of things that each need `smallest_bytes` of the rest of the file."""
        n = self.u64(what)
        if n * smallest_bytes > self.size - self.offset:
            raise self.fail(f"truncated or corrupt: it claims {n} {what} in {self.size} bytes")
        return n


def parse_header(data: mmap.mmap, path: str) -> Header:
    """Reads and checks everything before the tensor data.

    Raises:
      GgufError: not a GGUF, big-endian, truncated, contradictory, unknown version or dtype.
    """
    cursor = Cursor(data, path)
    if data[:4] != MAGIC:
        raise cursor.fail(
            f"not a GGUF: it begins with {bytes(data[:4])!r}", "give a .gguf model file"
        )
    cursor.offset = 4
    _check_version(cursor)
    tensor_count = cursor.count(SMALLEST_TENSOR_BYTES, "tensors")
    key_count = cursor.count(SMALLEST_KEY_BYTES, "keys")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.string("a key")
        if key in metadata:
            raise cursor.fail(f"key {key!r} occurs twice")
        metadata[key] = _read_value(cursor, cursor.u32(f"the type of {key!r}"), key)
    raw_tensors = [_read_tensor_info(cursor) for _ in range(tensor_count)]
    alignment = _check_alignment(cursor, metadata)
    data_offset = -(-cursor.offset // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, ne, dtype, offset in raw_tensors:
        if name in tensors:
            raise cursor.fail(f"tensor {name!r} occurs twice")
        tensors[name] = _place_tensor(cursor, name, ne, dtype, data_offset, offset, alignment)
    return Header(metadata, tensors, alignment, data_offset)


def _check_version(cursor: Cursor) -> None:
    version = cursor.u32("the version")
    if version & 0xFFFF == 0:
        raise cursor.fail(
            "the file is big-endian", "convert it with gguf-py's gguf_convert_endian.py"
        )
    if version not in VERSIONS:
        raise cursor.fail(
            f"GGUF version {version} is unknown", "versions 2 and 3 are read: convert it again"
        )


def _read_value(cursor: Cursor, kind: int, key: str) -> Any:
    if kind in SCALARS:
        value = _read_scalars(cursor, kind, 1, key)[0]
        return value.item()
    if kind == GGUFValueType.STRING:
        return cursor.string(f"the value of {key!r}")
    if kind != GGUFValueType.ARRAY:
        raise cursor.fail(f"key {key!r} has the unknown value type {kind}")
    item_kind = cursor.u32(f"the item type of {key!r}")
    if item_kind in SCALARS:
        length = cursor.count(SCALARS[item_kind].itemsize, f"items in {key!r}")
        return _read_scalars(cursor, item_kind, length, key)
    if item_kind == GGUFValueType.STRING:
        length = cursor.count(8, f"strings in {key!r}")
        return [cursor.string(f"an item of {key!r}") for _ in range(length)]
    raise cursor.fail(f"key {key!r} is an array of the unsupported type {item_kind}")


def _read_scalars(cursor: Cursor, kind: int, length: int, key: str) -> np.ndarray:
    dtype = SCALARS[kind]
    start = cursor.take(length * dtype.itemsize, f"the value of {key!r}")
    values = np.frombuffer(cursor.data, dtype, length, start).copy()
    return values.astype(bool) if kind == GGUFValueType.BOOL else values


def _read_tensor_info(cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string("a tensor name")
    dimensions = cursor.u32(f"the rank of tensor {name!r}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise cursor.fail(f"tensor {name!r} has {dimensions} dimensions (1 to 4 are possible)")
    ne = tuple(cursor.u64(f"the shape of tensor {name!r}") for _ in range(dimensions))
    return name, ne, cursor.u32(f"the dtype of {name!r}"), cursor.u64(f"the offset of {name!r}")


def _check_alignment(cursor: Cursor, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.fail(f"general.alignment is {alignment!r}, not a power of two")
    return alignment


def _place_tensor(cursor, name, ne, raw_dtype, data_offset, offset, alignment) -> TensorInfo:
    try:
        dtype = GGMLQuantizationType(raw_dtype)
        block, block_bytes = GGML_QUANT_SIZES[dtype]
    except (ValueError, KeyError) as error:
        known = f"{min(GGMLQuantizationType)} to {max(GGMLQuantizationType)}"
        raise cursor.fail(
            f"tensor {name!r} has the unknown dtype {raw_dtype}",
            f"known dtypes are {known}: convert the model again or update the gguf package",
        ) from error
    if min(ne) < 1:
        raise cursor.fail(f"tensor {name!r} has the empty shape {ne}")
    if ne[0] % block:
        raise cursor.fail(
            f"tensor {name!r}: rows of {ne[0]} are no multiple of {dtype.name} blocks"
        )
    if offset % alignment:
        raise cursor.fail(f"tensor {name!r}: offset {offset} is not aligned to {alignment}")
    nbytes = math.prod(ne) // block * block_bytes
    start = data_offset + offset
    if start + nbytes > cursor.size:
        raise cursor.fail(
            f"truncated: tensor {name!r} ends at byte {start + nbytes} of {cursor.size}"
        )
    return TensorInfo(name, tuple(reversed(ne)), dtype, start, nbytes)
