"""The IQ formats: weights from codebooks. Layouts: ggml-common.h; the grids are gguf-py's data."""

from functools import cache

import jax.numpy as jnp
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants

from greta_jax.gguf.blocks import (
    bit_list,
    block_format,
    f32,
    fields,
    half,
    half_bits,
    shifted,
    words,
)

IQ1_DELTA = 0.125


@cache
def _grid(name: str) -> np.ndarray:
    source = getattr(quants, name)
    source.init_grid()
    return np.asarray(source.grid, np.float32).reshape(source.grid_shape)


def _codewords(name: str, index):
    """Rows of the grid: [n, m] indices to [n, m, width]."""
    return jnp.asarray(_grid(name))[index.astype(jnp.int32)]


def _plus_minus(sign_bits):
    """Sign bytes [n, m] to +1 or -1 [n, m, 8]; a set bit is -1."""
    return 1 - 2 * f32(bit_list(sign_bits[..., None]))


def _ksigns(index):
    """Seven stored sign bits to the byte whose eighth makes their parity even."""
    table = np.frombuffer(quants.IQ2_XXS.ksigns, np.uint8)
    return jnp.asarray(table)[index.astype(jnp.int32)]


def _scaled(scale, grid, sign):
    """scale [n, groups] times codewords and signs, both [n, groups, ...] after reshaping."""
    shape = (*scale.shape, -1)
    return scale[..., None] * grid.reshape(shape) * sign.reshape(shape), None


def _quarter_scales(blocks, packed):
    return half(blocks[:, :2]) * (0.5 + f32(fields_in_pairs(packed))) * 0.25


def fields_in_pairs(packed):
    """Bytes [n, m] to their low and high halves, interleaved [n, 2m]."""
    return shifted(packed, range(0, 8, 4), 4).reshape(packed.shape[0], -1)


@block_format(T.IQ2_XXS)
def _iq2_xxs(blocks):
    pairs = words(jnp.uint32, blocks[:, 2:66]).reshape(-1, 8, 2)
    index = blocks[:, 2:66].reshape(-1, 8, 8)[:, :, :4].reshape(-1, 32)
    scale = half(blocks[:, :2]) * (0.5 + f32(pairs[..., 1] >> 28)) * 0.25
    sign = _plus_minus(_ksigns(shifted(pairs[..., 1], range(0, 28, 7), 7)).reshape(-1, 32))
    return _scaled(scale, _codewords("IQ2_XXS", index), sign)


@block_format(T.IQ2_XS)
def _iq2_xs(blocks):
    packed = words(jnp.uint16, blocks[:, 2:66])
    sign = _plus_minus(_ksigns(packed >> 9))
    scale = _quarter_scales(blocks, blocks[:, 66:74])
    return _scaled(scale, _codewords("IQ2_XS", packed & 511), sign)


@block_format(T.IQ2_S)
def _iq2_s(blocks):
    high = shifted(blocks[:, 66:74], range(0, 8, 2), 2).reshape(-1, 32).astype(jnp.uint16)
    index = blocks[:, 2:34].astype(jnp.uint16) | (high << 8)
    scale = _quarter_scales(blocks, blocks[:, 74:82])
    return _scaled(scale, _codewords("IQ2_S", index), _plus_minus(blocks[:, 34:66]))


@block_format(T.IQ3_XXS)
def _iq3_xxs(blocks):
    packed = words(jnp.uint32, blocks[:, 66:98])
    scale = half(blocks[:, :2]) * (0.5 + f32(packed >> 28)) * 0.5
    sign = _plus_minus(_ksigns(shifted(packed, range(0, 28, 7), 7)).reshape(-1, 32))
    return _scaled(scale, _codewords("IQ3_XXS", blocks[:, 2:66]), sign)


@block_format(T.IQ3_S)
def _iq3_s(blocks):
    high = bit_list(blocks[:, 66:74]).astype(jnp.uint16)
    index = blocks[:, 2:66].astype(jnp.uint16) | (high << 8)
    scale = half(blocks[:, :2]) * (1 + 2 * f32(fields_in_pairs(blocks[:, 106:110])))
    return _scaled(scale, _codewords("IQ3_S", index), _plus_minus(blocks[:, 74:106]))


@block_format(T.IQ1_S)
def _iq1_s(blocks):
    high = words(jnp.uint16, blocks[:, 34:50])
    extra = shifted(high, range(0, 12, 3), 3).reshape(-1, 32)
    index = blocks[:, 2:34].astype(jnp.uint16) | (extra << 8)
    scale = half(blocks[:, :2]) * (2 * f32((high >> 12) & 7) + 1)
    delta = jnp.where(high >> 15 == 0, jnp.float32(IQ1_DELTA), jnp.float32(-IQ1_DELTA))
    shifted_grid = _codewords("IQ1_S", index).reshape(-1, 8, 32) + delta[:, :, None]
    return scale[:, :, None] * shifted_grid, None


@block_format(T.IQ1_M)
def _iq1_m(blocks):
    """The fp16 scale lies in the top four bits of four words, lowest first."""
    packed = words(jnp.uint16, blocks[:, 48:56])
    top = packed >> 12
    scale_bits = top[:, 0] | (top[:, 1] << 4) | (top[:, 2] << 8) | (top[:, 3] << 12)
    steps = shifted(packed, range(0, 12, 3), 3).reshape(-1, 16)
    scale = half_bits(scale_bits)[:, None] * (2 * f32(steps) + 1)
    high = shifted(blocks[:, 32:48], range(0, 8, 4), 4).reshape(-1, 32)
    index = blocks[:, :32].astype(jnp.uint16) | ((high & 7).astype(jnp.uint16) << 8)
    delta = jnp.where(high & 8 == 0, jnp.float32(IQ1_DELTA), jnp.float32(-IQ1_DELTA))
    grid = _codewords("IQ1_M", index) + delta[:, :, None]
    return scale[:, :, None] * grid.reshape(-1, 16, 16), None


def _iq4_values(index):
    return f32(jnp.asarray(quants.IQ4_NL.kvalues, jnp.int8)[index.astype(jnp.int32)])


@block_format(T.IQ4_NL)
def _iq4_nl(blocks):
    return half(blocks[:, :2]) * _iq4_values(fields(blocks[:, 2:], 16, 4)), None


@block_format(T.IQ4_XS)
def _iq4_xs(blocks):
    high = shifted(words(jnp.uint16, blocks[:, 2:4])[:, 0], range(0, 16, 2), 2).astype(jnp.uint8)
    steps = (fields_in_pairs(blocks[:, 4:8]) | (high << 4)).astype(jnp.int8) - jnp.int8(32)
    scale = half(blocks[:, :2]) * f32(steps)
    return scale[:, :, None] * _iq4_values(fields(blocks[:, 8:], 16, 4)).reshape(-1, 8, 32), None
