"""Weights of the model: which tensor is which, of what shape, loaded a layer at a time."""

import math
import os
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from gguf import GGML_QUANT_SIZES

from greta_jax.config import LlamaConfig
from greta_jax.errors import TensorError
from greta_jax.gguf.dequantize import check_format, dequantize, dequantize_blocks, magnitude, rounds
from greta_jax.gguf.reader import GgufFile

LAYER_TENSORS = {
    "attn_norm_D": ("attn_norm.weight", "D"),
    "q_NHD": ("attn_q.weight", "NH,D"),
    "k_KHD": ("attn_k.weight", "KH,D"),
    "v_KHD": ("attn_v.weight", "KH,D"),
    "proj_DNH": ("attn_output.weight", "D,NH"),
    "ffn_norm_D": ("ffn_norm.weight", "D"),
    "gate_FD": ("ffn_gate.weight", "F,D"),
    "up_FD": ("ffn_up.weight", "F,D"),
    "down_DF": ("ffn_down.weight", "D,F"),
}
"""Weight (its suffix is its shape) to tensor name within `blk.<layer>.` and shape in the file."""

MODEL_TENSORS = {
    "embed_VD": ("token_embd.weight", "V,D"),
    "final_norm_D": ("output_norm.weight", "D"),
    "unembed_VD": ("output.weight", "V,D"),
}
ROPE_FACTORS = "rope_freqs.weight"
CHUNK_WEIGHTS = 2**21
"""Weights decoded and multiplied at a time. Small enough to stay in cache and in recycled memory:
decoding is several times faster than into fresh pages, and the products no slower."""

RESIDENT_SHARE = 0.25
"""Share of the machine's memory that decoded weights may take and stay."""


class ModelWeights:
    """The tensors of one file under one configuration and storage dtype, decoded when asked for.

    `resident`: decoded chunks are kept (None: if the whole model fits RESIDENT_SHARE of memory).
    Raises TensorError at construction for a tensor that is missing, unknown, misshapen or of a
    dtype that holds no weights; when decoding for NaN and inf.
    """

    def __init__(
        self, file: GgufFile, config: LlamaConfig, store: str, resident: bool | None = None
    ):
        self.file, self.config, self.store = file, config, store
        self.names = _expected_tensors(config)
        if "output.weight" not in file.tensors:
            self.names["unembed_VD"] = self.names["embed_VD"]
        self._check_tensors()
        self._asked_resident = resident
        self.resident = self._fits() if resident is None else resident
        self._kept: dict[str, tuple[jax.Array, ...]] = {}
        self._finite: set[str] = set()

    def with_store(self, store: str) -> "ModelWeights":
        """The same tensors stored in another dtype (decoded anew)."""
        return ModelWeights(self.file, self.config, store, self._asked_resident)

    def chunks(self, name: str, layer: int = -1) -> Iterator[jax.Array]:
        """A matrix as chunks of whole rows, each in the shape of its blocks; a vector as one [D].

        Raises TensorError if it holds NaN or inf (every tensor is checked once).
        """
        tensor = self.tensor_name(name, layer)
        if tensor in self._kept:
            yield from self._kept[tensor]
            return
        kept = []
        for chunk in self._decode(tensor):
            yield chunk
            if self.resident:
                kept.append(chunk)
        if self.resident:
            self._kept[tensor] = tuple(kept)
        else:
            self.file.forget(tensor)

    def load(self, name: str, layer: int = -1) -> jax.Array:
        """One whole weight, shaped as its suffix says. Raises as `chunks`."""
        parts = list(self._decode(self.tensor_name(name, layer)))
        return jnp.concatenate([part.reshape(-1) for part in parts]).reshape(self.shape(name))

    def _decode(self, tensor: str) -> Iterator[jax.Array]:
        info, raw = self.file.info(tensor), self.file.raw_rows(tensor)
        rows = rows_of_chunk(info.shape[-1])
        counts = []
        for start in range(0, raw.shape[0], rows):
            weights = dequantize_blocks(raw[start : start + rows], info.dtype, self.store)
            if tensor not in self._finite:
                counts.append(_count_nonfinite(weights))
            yield weights if len(info.shape) > 1 else weights.reshape(info.shape)
        self._check_finite(tensor, counts)

    def decode_changed(self, name: str, layer: int, change: Callable) -> jax.Array:
        """One weight decoded after `change` of its blocks [n, bytes], for counterfactuals."""
        tensor = self.tensor_name(name, layer)
        raw, dtype = self.file.raw_rows(tensor), self.file.info(tensor).dtype
        changed = change(raw.reshape(-1, GGML_QUANT_SIZES[dtype][1])).reshape(raw.shape)
        return dequantize(changed, dtype, self.store).reshape(self.shape(name))

    def magnitude(self, name: str, layer: int = -1) -> tuple[jax.Array, int]:
        """fp64 magnitudes that dequantisation roundings are relative to, and how many there are.

        At most two roundings: the reference's own (fp32) and the engine's.
        """
        tensor = self.tensor_name(name, layer)
        dtype = self.file.info(tensor).dtype
        total = magnitude(self.file.raw_rows(tensor), dtype).reshape(self.shape(name))
        return total, 2 * rounds(dtype)

    def embed_rows(self, token_ids: np.ndarray) -> jax.Array:
        """Rows of the embedding, TD, without decoding the others."""
        tensor = self.tensor_name("embed_VD")
        raw = self.file.raw_rows(tensor)[token_ids]
        rows = dequantize(raw, self.file.info(tensor).dtype, self.store)
        if int(_count_nonfinite(rows)):
            self._check_finite(tensor, [_count_nonfinite(self.load("embed_VD"))])
        return rows

    def embed_magnitudes(self, token_ids: np.ndarray) -> tuple[jax.Array, int]:
        """`magnitude` of rows of the embedding, TD."""
        tensor = self.tensor_name("embed_VD", -1)
        dtype = self.file.info(tensor).dtype
        return magnitude(self.file.raw_rows(tensor)[token_ids], dtype), 2 * rounds(dtype)

    def unembed_magnitudes(self) -> Iterator[tuple[jax.Array, int]]:
        """`magnitude` of the unembedding, a chunk of rows at a time."""
        tensor = self.tensor_name("unembed_VD")
        raw, info = self.file.raw_rows(tensor), self.file.info(tensor)
        rows = rows_of_chunk(info.shape[-1])
        for start in range(0, raw.shape[0], rows):
            yield magnitude(raw[start : start + rows], info.dtype), 2 * rounds(info.dtype)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that a weight's suffix spells."""
        return tuple(self.config.dimensions[letter] for letter in name.rsplit("_", 1)[1])

    def tensor_name(self, name: str, layer: int = -1) -> str:
        """The file's name of a weight."""
        return self.names[name].format(layer=layer)

    def _fits(self) -> bool:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        weights = sum(math.prod(info.shape) for info in self.file.tensors.values())
        return weights * jnp.dtype(self.store).itemsize < RESIDENT_SHARE * memory

    def _check_finite(self, tensor: str, counts: list[jax.Array]) -> None:
        bad = sum(int(count) for count in counts)
        if bad:
            raise TensorError(
                f"tensor {tensor!r} holds {bad} NaN or inf in "
                f"{math.prod(self.file.info(tensor).shape)} weights",
                where=self.file.path,
                remedy="the file is damaged or was converted wrongly: fetch or convert it again",
            )
        self._finite.add(tensor)

    def _check_tensors(self) -> None:
        expected = dict(_expected_shapes(self.config))
        if "output.weight" not in self.file.tensors:
            del expected["output.weight"]
        for tensor, shape in expected.items():
            info = self.file.info(tensor)
            check_format(info.dtype)
            if info.shape != shape:
                raise TensorError(
                    f"tensor {tensor!r} has shape {info.shape}, the configuration says {shape}",
                    where=self.file.path,
                    remedy="the file's keys and tensors disagree: convert the model again",
                )
        unknown = sorted(set(self.file.tensors) - set(expected) - {ROPE_FACTORS})
        if unknown:
            raise TensorError(
                f"{len(unknown)} tensors have no place in a {self.config.architecture} model: "
                f"{', '.join(unknown[:8])}",
                where=self.file.path,
                remedy="they would be ignored silently, so the model is refused",
            )


def rope_factors(file: GgufFile, head_dim: int) -> tuple[float, ...] | None:
    """The divisors of the rotation frequencies, if the file has any."""
    if ROPE_FACTORS not in file.tensors:
        return None
    info = file.info(ROPE_FACTORS)
    if info.shape != (head_dim // 2,):
        raise TensorError(
            f"tensor {ROPE_FACTORS!r} has shape {info.shape}, the heads need ({head_dim // 2},)",
            where=file.path,
            remedy="convert the model again",
        )
    return tuple(np.asarray(dequantize(file.raw_rows(ROPE_FACTORS), info.dtype)).ravel().tolist())


def rows_of_chunk(columns: int) -> int:
    """Rows of a matrix decoded at a time: a power of two, so that chunks share compiled code."""
    return 1 << max(CHUNK_WEIGHTS // columns, 1).bit_length() - 1


@jax.jit
def _count_nonfinite(weights):
    return jnp.sum(~jnp.isfinite(weights))


def _expected_tensors(config: LlamaConfig) -> dict[str, str]:
    del config
    layer = {name: f"blk.{{layer}}.{tensor}" for name, (tensor, _) in LAYER_TENSORS.items()}
    return layer | {name: tensor for name, (tensor, _) in MODEL_TENSORS.items()}


def _expected_shapes(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    shape_of = partial(_file_shape, config.dimensions)
    for tensor, letters in MODEL_TENSORS.values():
        yield tensor, shape_of(letters)
    for layer in range(config.layers):
        for tensor, letters in LAYER_TENSORS.values():
            yield f"blk.{layer}.{tensor}", shape_of(letters)


def _file_shape(dimensions: dict[str, int], letters: str) -> tuple[int, ...]:
    return tuple(math.prod(dimensions[x] for x in group) for group in letters.split(","))
