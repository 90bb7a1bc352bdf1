"""Weights of the model: which tensor is which, of what shape, loaded a layer at a time."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from gguf import GGML_QUANT_SIZES

from greta_jax.config import LlamaConfig
from greta_jax.errors import TensorError
from greta_jax.gguf.dequantize import check_format, dequantize, magnitude, rounds
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
UNEMBED_ROWS = 16384
"""Rows of the vocabulary unembedded at a time: bounds the memory of a large vocabulary in fp64."""

LayerWeights = dict[str, jax.Array]


class ModelWeights:
    """The tensors of one file under one configuration and storage dtype, loaded when asked for.

    Layers stay resident once loaded. Raises TensorError at construction for a tensor that is
    missing, unknown, misshapen or of a dtype that holds no weights; at loading for NaN and inf.
    """

    def __init__(self, file: GgufFile, config: LlamaConfig, store: str):
        self.file, self.config, self.store = file, config, store
        self.names = _expected_tensors(config)
        if "output.weight" not in file.tensors:
            self.names["unembed_VD"] = self.names["embed_VD"]
        self._check_tensors()
        self._layers: dict[int, LayerWeights] = {}
        self._unembed: list[jax.Array] | None = None

    def with_store(self, store: str) -> "ModelWeights":
        """The same tensors stored in another dtype (loaded anew)."""
        return ModelWeights(self.file, self.config, store)

    def layer(self, layer: int) -> LayerWeights:
        """Weights of one layer by name."""
        if layer not in self._layers:
            self._layers[layer] = {name: self.load(name, layer) for name in LAYER_TENSORS}
        return self._layers[layer]

    def load(self, name: str, layer: int = -1) -> jax.Array:
        """One weight, shaped as its suffix says. Raises TensorError if it holds NaN or inf."""
        tensor = self.tensor_name(name, layer)
        raw = self.file.raw_rows(tensor)
        weights = dequantize(raw, self.file.info(tensor).dtype, self.store)
        self._check_finite(tensor, weights)
        return weights.reshape(self.shape(name))

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
        """Rows of the embedding, TD, without loading the others."""
        tensor = self.tensor_name("embed_VD", -1)
        raw = self.file.raw_rows(tensor)[token_ids]
        rows = dequantize(raw, self.file.info(tensor).dtype, self.store)
        self._check_finite(tensor, rows)
        return rows

    def embed_magnitudes(self, token_ids: np.ndarray) -> tuple[jax.Array, int]:
        """`magnitude` of rows of the embedding, TD."""
        tensor = self.tensor_name("embed_VD", -1)
        dtype = self.file.info(tensor).dtype
        return magnitude(self.file.raw_rows(tensor)[token_ids], dtype), 2 * rounds(dtype)

    def unembed_magnitudes(self) -> Iterator[tuple[jax.Array, int]]:
        """`magnitude` of the unembedding in blocks of UNEMBED_ROWS rows."""
        tensor = self.tensor_name("unembed_VD", -1)
        raw, dtype = self.file.raw_rows(tensor), self.file.info(tensor).dtype
        for start in range(0, raw.shape[0], UNEMBED_ROWS):
            yield magnitude(raw[start : start + UNEMBED_ROWS], dtype), 2 * rounds(dtype)

    def unembed_chunks(self) -> Iterator[jax.Array]:
        """The unembedding in blocks of UNEMBED_ROWS rows of the vocabulary."""
        if self._unembed is None:
            tensor = self.tensor_name("unembed_VD", -1)
            raw, dtype = self.file.raw_rows(tensor), self.file.info(tensor).dtype
            starts = range(0, raw.shape[0], UNEMBED_ROWS)
            chunks = [dequantize(raw[s : s + UNEMBED_ROWS], dtype, self.store) for s in starts]
            for chunk in chunks:
                self._check_finite(tensor, chunk)
            self._unembed = chunks
        yield from self._unembed

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that a weight's suffix spells."""
        return tuple(self.config.dimensions[letter] for letter in name.rsplit("_", 1)[1])

    def tensor_name(self, name: str, layer: int = -1) -> str:
        """The file's name of a weight."""
        return self.names[name].format(layer=layer)

    def _check_finite(self, tensor: str, weights: jax.Array) -> None:
        bad = int(_count_nonfinite(weights))
        if bad:
            raise TensorError(
                f"tensor {tensor!r} holds {bad} NaN or inf in {weights.size} weights",
                where=self.file.path,
                remedy="the file is damaged or was converted wrongly: fetch or convert it again",
            )

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
