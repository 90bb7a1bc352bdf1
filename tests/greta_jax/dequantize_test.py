"""Dequantisation: the bits of gguf.dequantize, on random and on adversarial blocks."""

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from greta_jax.errors import TensorError
from greta_jax.gguf.blocks import FORMATS
from greta_jax.gguf.dequantize import dequantize, magnitude, rounds

ALL = sorted(FORMATS)
NO_WEIGHTS = {"Q8_1", "I8", "I16", "I32", "I64"}


def reference(raw: np.ndarray, dtype) -> np.ndarray:
    with np.errstate(all="ignore"):
        if dtype in PLAIN_REFERENCES:
            blocks = raw.reshape(-1, GGML_QUANT_SIZES[dtype][1])
            rows = [PLAIN_REFERENCES[dtype](block) for block in blocks]
            return np.asarray(rows, np.float32).reshape(raw.shape[0], -1)
        return gguf.dequantize(raw, dtype)


def one_q8_k(block):
    d = flushed(block[:4].view(np.float32), GGMLQuantizationType.Q8_K)
    return d * block[4:260].view(np.int8).astype(np.float32)


def one_q1_0(block):
    d = block[:2].view(np.float16).astype(np.float32)[0]
    return [d if block[2 + i // 8] >> (i % 8) & 1 else -d for i in range(128)]


PLAIN_REFERENCES = {
    GGMLQuantizationType.F64: lambda block: block.view(np.float64).astype(np.float32),
    GGMLQuantizationType.Q8_K: one_q8_k,
    GGMLQuantizationType.Q1_0: one_q1_0,
}
"""Formats that gguf-py lists and cannot decode: written out from ggml-quants.c."""


def test_every_format_that_gguf_lists_is_decoded_or_refused():
    assert {d.name for d in GGMLQuantizationType} == {d.name for d in FORMATS} | NO_WEIGHTS
    assert set(gguf.quants._type_traits) < set(FORMATS)


def differing_bits(ref: np.ndarray, got) -> int:
    """Values whose bits differ; NaN is one class where it came out of arithmetic."""
    got = np.asarray(got)
    assert ref.shape == got.shape and ref.dtype == got.dtype == np.float32
    both_nan = np.isnan(ref) & np.isnan(got)
    return int(np.sum((ref.view(np.uint32) != got.view(np.uint32)) & ~both_nan))


def flushed(ref: np.ndarray, dtype) -> np.ndarray:
    """XLA flushes subnormals in Q8_K's product and in F64's rounding; no other format has any."""
    if dtype not in (GGMLQuantizationType.Q8_K, GGMLQuantizationType.F64):
        return ref
    return np.where(np.abs(ref) < np.finfo(np.float32).tiny, np.copysign(0, ref), ref)


@pytest.mark.parametrize("dtype", ALL, ids=lambda d: d.name)
def test_random_blocks_are_bit_identical(dtype):
    _, nbytes = GGML_QUANT_SIZES[dtype]
    raw = np.random.default_rng(1).integers(0, 256, (48, 32 * nbytes), dtype=np.uint8)
    ref = flushed(reference(raw, dtype), dtype)
    assert differing_bits(ref, dequantize(raw, dtype)) == 0


@pytest.mark.parametrize("dtype", ALL, ids=lambda d: d.name)
def test_uniform_blocks_are_bit_identical(dtype):
    """Every byte value, filling whole blocks: extreme scales, all nibbles equal, NaN patterns."""
    _, nbytes = GGML_QUANT_SIZES[dtype]
    raw = np.repeat(np.arange(256, dtype=np.uint8)[:, None], nbytes, axis=1)
    ref = flushed(reference(raw, dtype), dtype)
    assert differing_bits(ref, dequantize(raw, dtype)) == 0


@pytest.mark.parametrize("dtype", [d for d in ALL if d.name in ("F16", "BF16", "F32")], ids=str)
def test_float_formats_keep_every_bit_even_of_nan(dtype):
    _, nbytes = GGML_QUANT_SIZES[dtype]
    top = np.arange(65536, dtype=np.uint16)[:, None].view(np.uint8)
    raw = np.concatenate([np.full((65536, nbytes - 2), 0x5A, np.uint8), top], axis=1)
    ref, got = reference(raw, dtype), np.asarray(dequantize(raw, dtype))
    assert np.array_equal(ref.view(np.uint32), got.view(np.uint32))


@pytest.mark.parametrize("dtype", ALL, ids=lambda d: d.name)
def test_magnitude_bounds_the_weight_and_equals_it_where_nothing_rounds(dtype):
    _, nbytes = GGML_QUANT_SIZES[dtype]
    raw = np.random.default_rng(2).integers(0, 128, (4, 8 * nbytes), dtype=np.uint8)
    weight = np.abs(np.asarray(dequantize(raw, dtype, "float64")))
    total = np.asarray(magnitude(raw, dtype))
    ok = np.isfinite(weight)
    assert np.all(total[ok] >= weight[ok] * (1 - np.finfo(np.float32).eps))
    if not rounds(dtype):
        assert np.array_equal(total[ok], weight[ok])


def test_storage_cast_keeps_fp32_values():
    raw = np.random.default_rng(3).integers(0, 128, (3, 144), dtype=np.uint8)
    single = dequantize(raw, GGMLQuantizationType.Q4_K)
    double = dequantize(raw, GGMLQuantizationType.Q4_K, "float64")
    assert double.dtype == jnp.float64
    assert np.array_equal(np.asarray(single).astype(np.float64), double, equal_nan=True)


def test_dtype_without_weights_is_refused_by_name():
    with pytest.raises(TensorError, match="I32"):
        dequantize(np.zeros((1, 4), np.uint8), GGMLQuantizationType.I32)
