"""The matrix core against mmasim, bit for bit."""

import time

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from greta_jax import mfma
from greta_jax.errors import PrecisionError

INSTRUCTIONS = {
    "f32_16x16x16_f16": ("f16", "f16", None),
    "f32_32x32x8_f16": ("f16", "f16", None),
    "f32_4x4x4_16b_f16": ("f16", "f16", 4),
    "f32_16x16x16_bf16": ("bf16", "bf16", None),
    "f32_32x32x8_bf16": ("bf16", "bf16", None),
    "f32_16x16x8_xf32": ("xf32", "xf32", None),
    "f32_32x32x4_xf32": ("xf32", "xf32", None),
    "f32_16x16x32_fp8_fp8": ("fp8", "fp8", None),
    "f32_16x16x32_bf8_fp8": ("bf8", "fp8", None),
    "f32_16x16x32_fp8_bf8": ("fp8", "bf8", None),
    "f32_32x32x16_bf8_bf8": ("bf8", "bf8", None),
    "f32_16x16x4_f32": ("f32", "f32", None),
    "f32_32x32x2_f32": ("f32", "f32", None),
}
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}


def as_jax(tensor: torch.Tensor, kind: str):
    """The same bits as a JAX array of the kind's dtype."""
    dtype = jnp.float32 if kind == "f32" else jnp.dtype(mfma.KINDS[kind].dtype)
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
    raw = tensor.view(integer).numpy().view(UNSIGNED[tensor.element_size()])
    return jnp.asarray(raw).view(dtype)


def draw(rng, shape, dtype: torch.dtype, style: str) -> torch.Tensor:
    """Operands: ordinary, of wildly mixed exponents, cancelling, or of random bits."""
    size = torch.empty(0, dtype=dtype).element_size()
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[size]
    if style == "bits":
        raw = rng.integers(0, 256, (*shape, size), dtype=np.uint8)
        return torch.from_numpy(raw).view(integer).reshape(shape).view(dtype)
    values = rng.standard_normal(shape)
    if style == "mixed":
        values *= 2.0 ** rng.integers(-20, 20, shape)
    if style == "cancelling":
        values = np.round(values * 4) / 4
        values[..., 1::2] = -values[..., ::2]
    if style == "tiny":
        values *= 2.0**-13
    return torch.from_numpy(values.astype(np.float32)).to(dtype)


@pytest.fixture(scope="module")
def simulator():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *args, **kwargs: None)
        amd = pytest.importorskip("mmasim.amd")
    return amd.MFMA


@pytest.mark.parametrize("style", ["normal", "mixed", "cancelling", "tiny", "bits"])
@pytest.mark.parametrize("suffix", INSTRUCTIONS)
def test_every_instruction_has_the_bits_of_mmasim(simulator, suffix, style):
    op = simulator("CDNA3", suffix)
    a_kind, b_kind, group = INSTRUCTIONS[suffix]
    rng = np.random.default_rng(sum(map(ord, suffix + style)))
    wrong = total = 0
    for scale in (0.0, 1.0, 2.0**-24, 2.0**12):
        A = draw(rng, (op.m, op.k), op.a_type, style)
        B = draw(rng, (op.k, op.n), op.b_type, style)
        C = draw(rng, (op.m, op.n), torch.float32, "normal" if style == "cancelling" else style)
        C = C if style == "bits" and scale else C * scale
        ref = op(A, B, C).numpy()
        b_NK = jnp.swapaxes(as_jax(B.contiguous(), b_kind), 0, 1)
        got = mfma.matmul(as_jax(A, a_kind), b_NK, as_jax(C, "f32"), a_kind, b_kind, group)
        got = np.asarray(got)
        same = (ref.view(np.uint32) == got.view(np.uint32)) | (np.isnan(ref) & np.isnan(got))
        if a_kind in ("fp8", "bf8"):
            same |= np.isnan(C.numpy()) & np.isnan(got)
        wrong, total = wrong + int((~same).sum()), total + same.size
    assert wrong == 0, f"{wrong} of {total} elements"


def test_the_floor_is_asymmetric_in_sign():
    one = jnp.ones((1, 8), jnp.float16) * jnp.asarray([1] + 7 * [0], jnp.float16)[None, :]
    bits = []
    for c in (-(2.0**-40), 2.0**-40):
        d = mfma.matmul(one, one, jnp.full((1, 1), c, jnp.float32), "f16")
        bits.append(int(np.asarray(d).view(np.uint32)[0, 0]))
    assert bits == [0x3F7FFFFF, 0x3F800000]


def test_a_chain_of_instructions_is_one_longer_sum():
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.standard_normal((3, 64)), jnp.float16) for _ in range(2))
    whole = mfma.matmul(a, b, jnp.zeros((3, 3), jnp.float32), "f16")
    acc = jnp.zeros((3, 3), jnp.float32)
    for k in range(0, 64, 16):
        acc = mfma.matmul(a[:, k : k + 16], b[:, k : k + 16], acc, "f16")
    assert np.array_equal(np.asarray(whole).view(np.uint32), np.asarray(acc).view(np.uint32))


def test_a_matrix_core_is_not_an_fma_chain():
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((64, 64)).astype(np.float16) for _ in range(2))
    zero = jnp.zeros((64, 64), jnp.float32)
    core = mfma.matmul(jnp.asarray(a), jnp.asarray(b), zero, "f16")
    chain = mfma.matmul(a.astype(np.float32), b.astype(np.float32), zero, "f32")
    assert 0.3 < np.mean(np.asarray(core) != np.asarray(chain)) < 0.9


def test_a_decode_attention_layer_at_2048_takes_seconds():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal(s), jnp.float16) for s in ((32, 128), (2048, 128)))
    zero = jnp.zeros((32, 2048), jnp.float32)
    mfma.matmul(q, k, zero, "f16").block_until_ready()
    started = time.perf_counter()
    for _ in range(8):
        mfma.matmul(q[:4], k, zero[:4], "f16").block_until_ready()
    assert time.perf_counter() - started < 10


def test_unknown_kinds_and_lengths_are_refused():
    a = jnp.ones((1, 12), jnp.float16)
    with pytest.raises(PrecisionError, match="int8"):
        mfma.matmul(a, a, jnp.zeros((1, 1), jnp.float32), "int8")
    with pytest.raises(PrecisionError, match="K = 12"):
        mfma.matmul(a, a, jnp.zeros((1, 1), jnp.float32), "f16")
