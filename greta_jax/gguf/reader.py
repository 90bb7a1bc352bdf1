"""A GGUF file, mapped and never loaded whole."""

import hashlib
import mmap
from functools import cached_property
from pathlib import Path

import numpy as np

from greta_jax.errors import GgufError, TensorError
from greta_jax.gguf.header import Header, TensorInfo, parse_header


class GgufFile:
    """Metadata and raw tensors of one file.

    Raises:
      GgufError: missing, unreadable, or not a well-formed little-endian GGUF.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        try:
            with open(self.path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise GgufError(
                "no such file", where=self.path, remedy="give the path of a .gguf model"
            ) from error
        except (OSError, ValueError) as error:
            raise GgufError(
                f"cannot be read: {error}", where=self.path, remedy="give a readable .gguf model"
            ) from error
        self.header: Header = parse_header(self._map, self.path)

    @property
    def metadata(self) -> dict:
        """Values by key."""
        return self.header.metadata

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Tensor descriptions by name, in file order."""
        return self.header.tensors

    @cached_property
    def sha256(self) -> str:
        """Digest of the whole file, computed on first use."""
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

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
        raw = np.frombuffer(self._map, np.uint8, info.nbytes, info.offset)
        return raw.reshape(-1, info.nbytes * info.shape[-1] // int(np.prod(info.shape)))
