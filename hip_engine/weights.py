"""GGUF tensors: checked against the configuration; the device gets the bytes of the file."""

import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader

from hip_engine.config import ModelConfig
from hip_engine.errors import ModelRefused

# Formats that kernels/weight_formats.h decodes -> the suffix of their kernels.
FORMATS = {
    GGMLQuantizationType.F32: "f32",
    GGMLQuantizationType.F16: "f16",
    GGMLQuantizationType.BF16: "bf16",
    GGMLQuantizationType.Q4_0: "q4_0",
    GGMLQuantizationType.Q8_0: "q8_0",
    GGMLQuantizationType.Q4_K: "q4_k",
    GGMLQuantizationType.Q5_K: "q5_k",
    GGMLQuantizationType.Q6_K: "q6_k",
}
# Whatever the GGUF reader raises on a file that is cut or not a GGUF.
READER_ERRORS = (ValueError, IndexError, KeyError, TypeError, OverflowError, OSError, MemoryError)


@dataclass(frozen=True)
class Tensor:
    """A weight in the file: `rows` (1 for a norm) by `columns`; `data` is memory mapped."""

    name: str
    rows: int
    columns: int
    type: GGMLQuantizationType
    data: np.ndarray

    @property
    def format(self) -> str:
        return FORMATS[self.type]


@dataclass(frozen=True)
class ModelFile:
    """A GGUF whose tensors are those that its configuration describes."""

    path: Path
    sha256: str
    config: ModelConfig
    tensors: dict[str, Tensor]
    mapping: mmap.mmap

    def release_pages(self):
        """Gives back the memory that reading `tensors` took; they can be read again."""
        self.mapping.madvise(mmap.MADV_DONTNEED)


def open_model(path: str | Path) -> ModelFile:
    """Reads and checks a GGUF without touching a device.

    Raises:
      ModelRefused: no such file, not a GGUF, truncated, another architecture, tensors missing, of
        another shape than the configuration says, or in a format without a kernel.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelRefused(f"no model file {path}")
    try:
        reader = GGUFReader(path)
    except READER_ERRORS as error:
        raise ModelRefused(f"{path} is not a whole GGUF file: {error}") from error
    try:
        config = ModelConfig.from_gguf(reader)
        tensors = _check_tensors(reader, config)
    except ModelRefused as error:
        raise ModelRefused(f"{path}: {error}") from None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ModelFile(path, digest, config, tensors, reader.data.base)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(rows, columns) of every tensor of a Llama of this shape; output.weight may be absent."""
    D, F, V = config.D, config.F, config.V
    Q, KV = config.N * config.H, config.K * config.H
    shapes = {"token_embd.weight": (V, D), "output_norm.weight": (1, D), "output.weight": (V, D)}
    for layer in range(config.L):
        block = {
            "attn_norm": (1, D),
            "attn_q": (Q, D),
            "attn_k": (KV, D),
            "attn_v": (KV, D),
            "attn_output": (D, Q),
            "ffn_norm": (1, D),
            "ffn_gate": (F, D),
            "ffn_up": (F, D),
            "ffn_down": (D, F),
        }
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def _check_tensors(reader: GGUFReader, config: ModelConfig) -> dict[str, Tensor]:
    shapes = expected_shapes(config)
    found = {tensor.name: tensor for tensor in reader.tensors}
    unknown = sorted(found.keys() - shapes.keys())
    if unknown:
        raise ModelRefused(f"tensors that the configuration does not describe: {_few(unknown)}")
    missing = sorted(shapes.keys() - found.keys() - {"output.weight"})
    if missing:
        raise ModelRefused(f"missing tensors: {_few(missing)}")
    tensors = {}
    for name, raw in found.items():
        rows, columns = shapes[name]
        shape = tuple(int(n) for n in raw.shape)  # GGUF order: columns first
        if shape != ((columns,) if rows == 1 else (columns, rows)):
            raise ModelRefused(
                f"{name} is {'x'.join(map(str, shape))} (columns first), the configuration says "
                f"{columns}x{rows}"
            )
        if raw.tensor_type not in FORMATS or (rows == 1 and FORMATS[raw.tensor_type] != "f32"):
            allowed = "F32" if rows == 1 else ", ".join(t.name for t in FORMATS)
            raise ModelRefused(f"{name} is {raw.tensor_type.name}: kernels decode {allowed}")
        tensors[name] = Tensor(name, rows, columns, raw.tensor_type, raw.data)
    return tensors


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
