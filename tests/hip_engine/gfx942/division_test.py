"""a/b and sqrt as clang writes them for gfx942 are IEEE operations on the emulated device."""

import numpy as np
import pytest

from tests.hip_engine.gfx942 import objects

SOURCE = """
template <class T> DEVICE void both(const T* a, const T* b, T* out, int count) {
  u32 t = bid() * 256 + tid();
  out[t] = a[t] / b[t];
  out[count + t] = sizeof(T) == 4 ? __builtin_sqrtf(a[t]) : __builtin_sqrt(a[t]);
}
KERNEL float32(const float* a, const float* b, float* out, int n) { both(a, b, out, n); }
KERNEL float64(const double* a, const double* b, double* out, int n) { both(a, b, out, n); }
"""
COUNT = 1 << 19


def operands(dtype, seed: int):
    """Random bits; quotients near overflow, near subnormal and on its midpoints; special values."""
    rng = np.random.default_rng(seed)
    word = {4: np.uint32, 8: np.uint64}[np.dtype(dtype).itemsize]
    info = np.finfo(dtype)
    a, b = (
        rng.integers(0, np.iinfo(word).max, COUNT, word, endpoint=True).view(dtype) for _ in "ab"
    )
    edge = COUNT // 4
    exponents = rng.integers(info.minexp - 3, info.minexp + 3, edge)
    a[:edge] = np.ldexp(rng.uniform(1, 2, edge), exponents // 2).astype(dtype)
    b[:edge] = np.ldexp(rng.uniform(1, 2, edge), exponents // 2 - exponents).astype(dtype)
    few = np.array(
        [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, info.tiny, -info.tiny, info.max]
        + [info.smallest_subnormal, info.max / 2, 3, 1 / 3],
        dtype,
    )
    grid = np.array(np.meshgrid(few, few)).reshape(2, -1)
    a[-grid.shape[1] :], b[-grid.shape[1] :] = grid
    return a, b


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_quotients_and_roots_are_correctly_rounded(device, dtype):
    kernel = device.load(objects.hip(SOURCE))[np.dtype(dtype).name]
    a, b = operands(dtype, seed=11)
    buffers = [device.allocate(x.nbytes, "input") for x in (a, b)]
    out = device.allocate(2 * a.nbytes, "out")
    for buffer, x in zip(buffers, (a, b), strict=True):
        device.write(buffer, x)
    device.launch(kernel, (COUNT // 256, 1, 1), (256, 1, 1), [*buffers, out, COUNT])
    got = device.read(out, dtype, 2 * COUNT).reshape(2, COUNT)
    with np.errstate(all="ignore"):
        want = np.stack([a / b, np.sqrt(a)])
    assert (np.abs(want[0]) < np.finfo(dtype).tiny).sum() > COUNT // 16, "subnormals are reached"
    wrong = (got != want) & ~(np.isnan(got) & np.isnan(want))
    signs = (got == 0) & (np.signbit(got) != np.signbit(want))
    assert wrong.sum() == 0 and signs.sum() == 0
    for buffer in (*buffers, out):
        device.free(buffer)
