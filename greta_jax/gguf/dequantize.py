"""GGUF blocks to weights, bit-identical to gguf.dequantize; the formats are in the files beside."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from greta_jax.errors import TensorError
from greta_jax.gguf import iq_quants, k_quants, plain_quants  # noqa: F401  (they register formats)
from greta_jax.gguf.blocks import FORMATS, ROUNDED_PRODUCTS


def dequantize(raw: np.ndarray, dtype: GGMLQuantizationType, store: str = "float32") -> jax.Array:
    """The weights of raw rows [rows, bytes of a row], rounded to fp32 and then cast to `store`.

    F64 tensors are cast to `store` directly.

    Raises:
      TensorError: the format holds no weights (I8 ... I64, Q8_1) or is unknown here.
    """
    return dequantize_blocks(raw, dtype, store).reshape(raw.shape[0], -1)


def dequantize_blocks(raw: np.ndarray, dtype: GGMLQuantizationType, store: str) -> jax.Array:
    """The same weights in row order but in the shape of the blocks.

    Reshaping them inside the same compiled loop would keep XLA from vectorising it (15 times slower
    for Q4_K); whoever uses them reshapes them at no cost. Raises as `dequantize`.
    """
    check_format(dtype)
    return _dequantize(jnp.asarray(raw), dtype, store)


def magnitude(raw: np.ndarray, dtype: GGMLQuantizationType) -> jax.Array:
    """|scaled| + |offset| in fp64: what the roundings of any evaluation order are relative to."""
    check_format(dtype)
    return _magnitude(jnp.asarray(raw), dtype)


def rounds(dtype: GGMLQuantizationType) -> bool:
    """True if dequantising this format in fp32 rounds at all."""
    check_format(dtype)
    _, block_bytes = GGML_QUANT_SIZES[dtype]
    block = jax.ShapeDtypeStruct((1, block_bytes), jnp.uint8)
    _, offset = jax.eval_shape(FORMATS[dtype], block)
    return offset is not None or dtype in ROUNDED_PRODUCTS


def check_format(dtype: GGMLQuantizationType) -> None:
    """Raises TensorError for a dtype that holds no weights this package can decode."""
    if dtype not in FORMATS:
        names = ", ".join(sorted(known.name for known in FORMATS))
        raise TensorError(f"dtype {dtype.name} cannot be dequantised", remedy=f"known are {names}")


@partial(jax.jit, static_argnames=("dtype", "store"))
def _dequantize(raw, dtype, store):
    scaled, offset = FORMATS[dtype](_as_blocks(raw, dtype))
    return (scaled if offset is None else scaled - offset).astype(store)


@partial(jax.jit, static_argnames=("dtype",))
def _magnitude(raw, dtype):
    scaled, offset = FORMATS[dtype](_as_blocks(raw, dtype))
    total = jnp.abs(scaled).astype(jnp.float64)
    if offset is not None:
        total = total + jnp.abs(offset).astype(jnp.float64)
    return total.reshape(raw.shape[0], -1)


def _as_blocks(raw, dtype):
    return raw.reshape(-1, GGML_QUANT_SIZES[dtype][1])
