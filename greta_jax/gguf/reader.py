"""A GGUF file, or all the parts of a split one, mapped and never loaded whole."""

import hashlib
import mmap
import re
from functools import cached_property
from pathlib import Path

import numpy as np

from greta_jax.errors import GgufError, TensorError
from greta_jax.gguf.header import Header, TensorInfo, parse_header

PART_NAME = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf")
"""How llama.cpp's gguf-split names parts; `split.no` in the metadata counts from 0."""


class GgufFile:
    """Metadata and raw tensors of one model. A split model is opened by its first part.

    Raises:
      GgufError: missing, unreadable, not a well-formed little-endian GGUF, or not all its parts.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        self._parts = [_Part(self.path)]
        self.metadata: dict = self._parts[0].header.metadata
        self._open_other_parts()
        self.tensors: dict[str, TensorInfo] = {}
        self._part_of: dict[str, _Part] = {}
        for part in self._parts:
            for name, info in part.header.tensors.items():
                if name in self.tensors:
                    raise GgufError(f"tensor {name!r} is also in another part", where=part.path)
                self.tensors[name], self._part_of[name] = info, part
        expected = self._number("split.tensors.count")
        if expected is not None and expected != len(self.tensors):
            raise GgufError(
                f"the parts hold {len(self.tensors)} tensors, split.tensors.count is {expected}",
                where=self.path,
                remedy="fetch all parts of the same model again",
            )

    @property
    def header(self) -> Header:
        """The header of the (first) file."""
        return self._parts[0].header

    @cached_property
    def sha256(self) -> str:
        """Digest of the file, or of its parts one after the other, computed on first use."""
        digest = hashlib.sha256()
        for part in self._parts:
            digest.update(part.map)
        return digest.hexdigest()

    def info(self, name: str) -> TensorInfo:
        """Description of one tensor. Raises TensorError if the file has none of that name."""
        if name not in self.tensors:
            raise TensorError(
                f"tensor {name!r} is missing",
                where=self.path,
                remedy="convert the model again, or check that it is a whole model and no adapter",
            )
        return self.tensors[name]

    def raw_rows(self, name: str) -> np.ndarray:
        """The stored bytes of a tensor as a view [rows, bytes of a row] on the mapped file."""
        info = self.info(name)
        raw = np.frombuffer(self._part_of[name].map, np.uint8, info.nbytes, info.offset)
        return raw.reshape(-1, info.nbytes * info.shape[-1] // int(np.prod(info.shape)))

    def forget(self, name: str) -> None:
        """Gives the resident pages of a tensor back; reading it again maps them anew."""
        info, mapped = self.info(name), self._part_of[name].map
        first = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, first, info.offset + info.nbytes - first)

    def _open_other_parts(self) -> None:
        count, number = (self._number(key) for key in ("split.count", "split.no"))
        if count is None or count <= 1:
            return
        name = PART_NAME.fullmatch(self.path)
        if name is None or int(name["part"]) != 1 or int(name["parts"]) != count:
            raise GgufError(
                f"it is part {(number or 0) + 1} of {count} of a split model",
                where=self.path,
                remedy=f"open the part that is named ...-00001-of-{count:05d}.gguf",
            )
        for number in range(2, count + 1):
            part = _Part(f"{name['stem']}-{number:05d}-of-{count:05d}.gguf")
            if part.header.metadata.get("split.no") != number - 1:
                raise GgufError(
                    f"split.no is {part.header.metadata.get('split.no')}, not {number - 1}",
                    where=part.path,
                    remedy="fetch the parts again",
                )
            self._parts.append(part)

    def _number(self, key: str) -> int | None:
        value = self.metadata.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise GgufError(
                f"{key} is {value!r}, no integer",
                where=self.path,
                remedy="fetch or convert the file again",
            )
        return value


class _Part:
    """One mapped file and its header."""

    def __init__(self, path: str):
        self.path = path
        try:
            with open(path, "rb") as file:
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise GgufError(
                "no such file", where=path, remedy="give the path of a .gguf model"
            ) from error
        except (OSError, ValueError) as error:
            raise GgufError(
                f"cannot be read: {error}", where=path, remedy="give a readable .gguf model"
            ) from error
        self.header: Header = parse_header(self.map, path)
