"""Weights of the model: which tensor is which, of what shape, loaded a layer at a time."""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from gguf import GGML_QUANT_SIZES

from greta_jax import accelerator
from greta_jax.architectures import Architecture
from greta_jax.config import LlamaConfig
from greta_jax.errors import TensorError
from greta_jax.gguf.dequantize import check_format, dequantize, dequantize_blocks, magnitude, rounds
from greta_jax.gguf.reader import GgufFile
from greta_jax.sharding import ONE_DEVICE, OneDevice


@dataclass(frozen=True)
class Tensor:
    """Where a weight lies: the file's name of its tensor, which rows of it, and all its sizes.

    Letters as in WORKSPACE_NOTES.md; `+` adds, a comma separates dimensions, rows first. `first` is
    the letters of the rows before the weight's own.
    """

    name: str
    letters: str
    first: str = ""


LAYER_TENSORS = {
    "attn_norm_D": Tensor("attn_norm.weight", "D"),
    "q_NHD": Tensor("attn_q.weight", "NH,D"),
    "k_KHD": Tensor("attn_k.weight", "KH,D"),
    "v_KHD": Tensor("attn_v.weight", "KH,D"),
    "proj_DNH": Tensor("attn_output.weight", "D,NH"),
    "ffn_norm_D": Tensor("ffn_norm.weight", "D"),
    "gate_FD": Tensor("ffn_gate.weight", "F,D"),
    "up_FD": Tensor("ffn_up.weight", "F,D"),
    "down_DF": Tensor("ffn_down.weight", "D,F"),
}
"""Weight (its suffix is its shape) to its tensor within `blk.<layer>.`."""

BIASES = {
    "q_bias_NH": Tensor("attn_q.bias", "NH"),
    "k_bias_KH": Tensor("attn_k.bias", "KH"),
    "v_bias_KH": Tensor("attn_v.bias", "KH"),
}
FUSED = {
    "q_NHD": Tensor("attn_qkv.weight", "NH+KH+KH,D"),
    "k_KHD": Tensor("attn_qkv.weight", "NH+KH+KH,D", "NH"),
    "v_KHD": Tensor("attn_qkv.weight", "NH+KH+KH,D", "NH+KH"),
    "gate_FD": Tensor("ffn_up.weight", "F+F,D"),
    "up_FD": Tensor("ffn_up.weight", "F+F,D", "F"),
}
QK_NORMS = {
    "head": {
        "q_norm_H": Tensor("attn_q_norm.weight", "H"),
        "k_norm_H": Tensor("attn_k_norm.weight", "H"),
    },
    "all": {
        "q_norm_NH": Tensor("attn_q_norm.weight", "NH"),
        "k_norm_KH": Tensor("attn_k_norm.weight", "KH"),
    },
    None: {},
}
POST_NORMS = {
    "attn_post_norm_D": Tensor("post_attention_norm.weight", "D"),
    "ffn_post_norm_D": Tensor("post_ffw_norm.weight", "D"),
}

MODEL_TENSORS = {
    "embed_VD": Tensor("token_embd.weight", "V,D"),
    "final_norm_D": Tensor("output_norm.weight", "D"),
    "unembed_VD": Tensor("output.weight", "V,D"),
}
EXPERTS = {
    "router_ED": Tensor("ffn_gate_inp.weight", "E,D"),
    "gate_EFD": Tensor("ffn_gate_exps.weight", "E,F,D"),
    "up_EFD": Tensor("ffn_up_exps.weight", "E,F,D"),
    "down_EDF": Tensor("ffn_down_exps.weight", "E,D,F"),
}
DENSE_FFN = ("gate_FD", "up_FD", "down_DF")
ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
"""Divisors of RoPE's frequencies: for every context (Llama 3.1), or for short and for long ones."""
RESIDENT_SHARE = 0.25
"""Share of the machine's memory that decoded weights may take and stay."""


class ModelWeights:
    """The tensors of one file under one configuration and storage dtype, decoded when asked for.

    `resident`: decoded chunks are kept (None: if the whole model fits RESIDENT_SHARE of memory).
    Raises TensorError at construction for a tensor that is missing, unknown, misshapen or of a
    dtype that holds no weights; when decoding for NaN and inf.
    """

    def __init__(
        self,
        file: GgufFile,
        config: LlamaConfig,
        store: str,
        resident: bool | None = None,
        place: OneDevice = ONE_DEVICE,
    ):
        self.file, self.config, self.store, self.place = file, config, store, place
        self.table = {**MODEL_TENSORS, **layer_tensors(config.row)}
        if "output.weight" not in file.tensors:
            self.table["unembed_VD"] = MODEL_TENSORS["embed_VD"]
        self._check_tensors()
        self._asked_resident = resident
        self.resident = self._fits() if resident is None else resident
        self._kept: dict[tuple[str, int], tuple[jax.Array, ...]] = {}
        self._finite: set[tuple[str, int]] = set()
        self._ahead, self._checks = accelerator.Ahead(), accelerator.Checks()
        if not self.resident:
            accelerator.keep_freed_memory()

    def with_store(self, store: str) -> "ModelWeights":
        """The same tensors stored in another dtype (decoded anew)."""
        return ModelWeights(self.file, self.config, store, self._asked_resident, self.place)

    def chunks(self, name: str, layer: int = -1, checked: bool = True) -> Iterator[jax.Array]:
        """A matrix as chunks of whole rows, each in the shape of its blocks; a vector as one [D].

        Raises TensorError if it holds NaN or inf (every tensor is checked once, by `settle` at the
        latest); with `checked=False` the caller shows its products to `check_products` instead.
        """
        if (name, layer) in self._kept:
            yield from self._kept[name, layer]
            return
        kept = []
        for chunk in self._decode(name, layer, checked):
            yield chunk
            if self.resident:
                kept.append(chunk)
        if self.resident:
            self._kept[name, layer] = tuple(kept)
        else:
            self.file.forget(self.tensor_name(name, layer))

    def load(self, name: str, layer: int = -1) -> jax.Array:
        """One whole weight, shaped as its suffix says. Raises as `chunks`."""
        parts = list(self._decode(name, layer))
        self.settle()
        return jnp.concatenate([part.reshape(-1) for part in parts]).reshape(self.shape(name))

    def check_products(self, name: str, layer: int, products: list[jax.Array]) -> None:
        """Searches a weight for NaN and inf if its products with anything hold any.

        A NaN or inf of a row makes each of its products NaN or inf, and there are fewer of those.
        """
        if (name, layer) not in self._finite:
            found = [_any_nonfinite(product_TE, len(product_TE)) for product_TE in products]
            self._checks.add(self._check_finite, name, layer, found)

    def _decode(self, name: str, layer: int, checked: bool = True) -> Iterator[jax.Array]:
        tensor = self.tensor_name(name, layer)
        info, raw = self.file.info(tensor), self.raw_rows(name, layer)
        rows = rows_of_chunk(info.shape[-1])
        found = []
        for start in range(0, raw.shape[0], rows):
            piece = self.place.rows(raw[start : start + rows])
            piece = self._ahead.take((name, layer, start), piece)
            weights = dequantize_blocks(piece, info.dtype, self.store)
            if checked and (name, layer) not in self._finite:
                found.append(_any_nonfinite(weights, piece.shape[0]))
            yield weights if len(info.shape) > 1 else weights.reshape(info.shape)
        if found:
            self._checks.add(self._check_finite, name, layer, found)

    def settle(self) -> None:
        """Raises TensorError if a tensor used so far holds NaN or inf and was not yet refused."""
        self._checks.settle()

    def send_ahead(self, layer: int) -> None:
        """Starts copying what the next layers need to a GPU; on a CPU there is nothing to do."""
        if not accelerator.in_use() or self.place.devices > 1:
            return
        last = min(layer + accelerator.LAYERS_AHEAD, self.config.layers - 1)
        wanted = [
            (n, at) for at in range(layer, last + 1) for n in self.table if n not in MODEL_TENSORS
        ]
        if last == self.config.layers - 1:
            wanted.append(("unembed_VD", -1))
        for name, at in wanted:
            if (name, at) in self._kept:
                continue
            raw = self.raw_rows(name, at)
            rows = rows_of_chunk(self.file.info(self.tensor_name(name, at)).shape[-1])
            for start in range(0, raw.shape[0], rows):
                self._ahead.ask((name, at, start), raw[start : start + rows])

    def raw_rows(self, name: str, layer: int = -1) -> np.ndarray:
        """The stored bytes of a weight's rows [rows, bytes of a row]; a vector is one row."""
        raw, entry = self.file.raw_rows(self.tensor_name(name, layer)), self.table[name]
        if not entry.first and "+" not in entry.letters:
            return raw
        first = _size(self.config.dimensions, entry.first)
        own = math.prod(self.shape(name)[:-1])
        return raw[first : first + own]

    def decode_changed(self, name: str, layer: int, change: Callable) -> jax.Array:
        """One weight decoded after `change` of its blocks [n, bytes], for counterfactuals."""
        tensor = self.tensor_name(name, layer)
        raw, dtype = self.raw_rows(name, layer), self.file.info(tensor).dtype
        changed = change(raw.reshape(-1, GGML_QUANT_SIZES[dtype][1])).reshape(raw.shape)
        return dequantize(changed, dtype, self.store).reshape(self.shape(name))

    def magnitude(self, name: str, layer: int = -1) -> tuple[jax.Array, int]:
        """fp64 magnitudes that dequantisation roundings are relative to, and how many there are.

        At most two roundings: the reference's own (fp32) and the engine's.
        """
        tensor = self.tensor_name(name, layer)
        dtype = self.file.info(tensor).dtype
        total = magnitude(self.raw_rows(name, layer), dtype).reshape(self.shape(name))
        return total, 2 * rounds(dtype)

    def embed_rows(self, token_ids: np.ndarray) -> jax.Array:
        """Rows of the embedding, TD, without decoding the others."""
        tensor = self.tensor_name("embed_VD")
        raw = self.file.raw_rows(tensor)[token_ids]
        rows = dequantize(raw, self.file.info(tensor).dtype, self.store)
        if bool(_any_nonfinite(rows, len(rows))):
            self.load("embed_VD")
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
        tensor = self.table[name].name
        return tensor if name in MODEL_TENSORS else f"blk.{layer}.{tensor}"

    def _fits(self) -> bool:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        weights = sum(math.prod(info.shape) for info in self.file.tensors.values())
        return weights * jnp.dtype(self.store).itemsize < RESIDENT_SHARE * memory

    def _check_finite(self, name: str, layer: int, found: list[jax.Array]) -> None:
        tensor, bad = self.tensor_name(name, layer), 0
        if any(map(bool, found)):
            raw, dtype = self.raw_rows(name, layer), self.file.info(tensor).dtype
            bad = int(np.sum(~np.isfinite(np.asarray(dequantize(raw, dtype, self.store)))))
        if bad:
            raise TensorError(
                f"tensor {tensor!r} holds {bad} NaN or inf in "
                f"{math.prod(self.file.info(tensor).shape)} weights",
                where=self.file.path,
                remedy="the file is damaged or was converted wrongly: fetch or convert it again",
            )
        self._finite.add((name, layer))

    def _check_tensors(self) -> None:
        expected = set()
        for tensor, shape in _expected_shapes(self.config):
            if tensor == "output.weight" and tensor not in self.file.tensors:
                continue
            expected.add(tensor)
            info = self.file.info(tensor)
            check_format(info.dtype)
            if info.shape != shape:
                raise TensorError(
                    f"tensor {tensor!r} has shape {info.shape}, the configuration says {shape}",
                    where=self.file.path,
                    remedy="the file's keys and tensors disagree: convert the model again",
                )
        unknown = sorted(set(self.file.tensors) - expected - set(ROPE_FACTORS))
        if unknown:
            raise TensorError(
                f"{len(unknown)} tensors have no place in a {self.config.architecture} model: "
                f"{', '.join(unknown[:8])}",
                where=self.file.path,
                remedy="they would be ignored silently, so the model is refused",
            )


def rope_factors(file: GgufFile, config: LlamaConfig) -> tuple[float, ...] | None:
    """The divisors of the rotation frequencies in a run of that context, if the file has any.

    Raises TensorError if one is missing, misshapen, or no positive number.
    """
    if not file.tensors.keys() & set(ROPE_FACTORS):
        return None
    always, short, long = ROPE_FACTORS
    scaling = config.rope_scaling
    extended = scaling is not None and config.context > scaling.original_context
    name = always if always in file.tensors else long if extended else short
    info, pairs = file.info(name), config.rope_dim // 2
    check_format(info.dtype)
    if info.shape != (pairs,):
        raise TensorError(
            f"tensor {name!r} has shape {info.shape}, the heads need ({pairs},)",
            where=file.path,
            remedy="convert the model again",
        )
    factors_R = np.asarray(dequantize(file.raw_rows(name), info.dtype)).ravel()
    bad = int(np.sum(~(np.isfinite(factors_R) & (factors_R > 0))))
    if bad:
        raise TensorError(
            f"tensor {name!r} holds {bad} divisors of {pairs} that are no positive number",
            where=file.path,
            remedy="the file is damaged or was converted wrongly: fetch or convert it again",
        )
    return tuple(factors_R.tolist())


def rows_of_chunk(columns: int) -> int:
    """Rows of a matrix decoded at a time: a power of two, so that chunks share compiled code."""
    return 1 << max(accelerator.chunk_weights() // columns, 1).bit_length() - 1


@partial(jax.jit, static_argnames=("rows",))
def _any_nonfinite(weights, rows):
    """Column by column first, which XLA vectorises: a count costs more than decoding."""
    return jnp.any(jnp.any(~jnp.isfinite(weights.reshape(rows, -1)), axis=0))


def layer_tensors(row: Architecture) -> dict[str, Tensor]:
    """The weights of one layer of an architecture."""
    table = LAYER_TENSORS | QK_NORMS[row.qk_norm]
    table |= FUSED if row.fused else {}
    table |= BIASES if row.qkv_bias else {}
    table |= POST_NORMS if row.post_norms else {}
    table |= EXPERTS if row.experts else {}
    absent = () if row.pre_norms else ("attn_norm_D", "ffn_norm_D")
    absent += DENSE_FFN if row.experts else ()
    return {name: tensor for name, tensor in table.items() if name not in absent}


def _expected_shapes(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    shape_of = partial(file_shape, config.dimensions)
    for tensor in MODEL_TENSORS.values():
        yield tensor.name, shape_of(tensor.letters)
    for layer in range(config.layers):
        for tensor in layer_tensors(config.row).values():
            yield f"blk.{layer}.{tensor.name}", shape_of(tensor.letters)


def file_shape(dimensions: dict[str, int], letters: str) -> tuple[int, ...]:
    """Sizes of the tensor that letters spell."""
    return tuple(_size(dimensions, group) for group in letters.split(","))


def _size(dimensions: dict[str, int], letters: str) -> int:
    terms = letters.split("+") if letters else []
    return sum(math.prod(dimensions[x] for x in term) for term in terms)
