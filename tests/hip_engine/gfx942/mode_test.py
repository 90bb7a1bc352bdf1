"""The MODE register: denormals and rounding, from the descriptor and changed on the way."""

import numpy as np
import pytest

from tests.hip_engine.gfx942 import objects

SOURCE = """
KERNEL products(const float* a, const float* b, float* out) {
  u32 t = bid() * 64 + tid();
  out[t] = a[t] * b[t];
}
KERNEL rounded(const float* a, const float* b, float* out, int how) {
  u32 t = bid() * 64 + tid();
  float x = a[t], y = b[t], sum, back;
  if (how == 1) __builtin_amdgcn_s_setreg(3 << 11 | 0 << 6 | 1, 5);
  if (how == 2) __builtin_amdgcn_s_setreg(3 << 11 | 0 << 6 | 1, 10);
  if (how == 3) __builtin_amdgcn_s_setreg(3 << 11 | 0 << 6 | 1, 15);
  asm volatile("v_add_f32 %0, %1, %2" : "=v"(sum) : "v"(x), "v"(y));
  __builtin_amdgcn_s_setreg(3 << 11 | 0 << 6 | 1, 0);
  asm volatile("v_add_f32 %0, %1, %2" : "=v"(back) : "v"(x), "v"(y));
  out[t] = sum;
  out[t + 64 * 64] = back;
}
"""
COUNT = 64 * 64


@pytest.fixture(scope="module")
def numbers():
    rng = np.random.default_rng(5)
    return [
        (rng.standard_normal(COUNT) * np.exp2(rng.integers(-70, -55, COUNT))).astype(np.float32)
        for _ in range(2)
    ]


def run(device, kernel, arrays, *scalars, outputs=COUNT):
    buffers = [device.allocate(a.nbytes, "input") for a in arrays]
    for buffer, array in zip(buffers, arrays, strict=True):
        device.write(buffer, array)
    out = device.allocate(4 * outputs, "out")
    device.launch(kernel, (COUNT // 64, 1, 1), (64, 1, 1), [*buffers, out, *scalars])
    result = device.read(out, np.float32, outputs)
    for buffer in (*buffers, out):
        device.free(buffer)
    return result


def test_subnormal_products_are_kept_by_default_and_flushed_where_the_descriptor_says(
    device, numbers
):
    keep = device.load(objects.hip(SOURCE))["products"]
    flush = device.load(objects.hip(SOURCE, "-O3", "-fgpu-flush-denormals-to-zero"))["products"]
    exact = numbers[0] * numbers[1]
    subnormal = (np.abs(exact) < np.finfo(np.float32).tiny) & (exact != 0)
    assert subnormal.any() and not subnormal.all()
    np.testing.assert_array_equal(run(device, keep, numbers), exact)
    flushed = np.where(subnormal, np.copysign(np.float32(0), exact), exact)
    got = run(device, flush, numbers)
    np.testing.assert_array_equal(got.view(np.uint32), flushed.view(np.uint32))


@pytest.mark.parametrize(("how", "direction"), [(0, None), (1, np.inf), (2, -np.inf), (3, 0.0)])
def test_a_kernel_may_change_its_rounding_and_back(device, how, direction):
    rng = np.random.default_rng(how)
    x, y = (rng.standard_normal(COUNT).astype(np.float32) for _ in range(2))
    exact = x.astype(np.float64) + y.astype(np.float64)
    nearest = exact.astype(np.float32)
    want = nearest
    if direction is not None:
        step = np.nextafter(nearest, np.float32(direction))
        beyond = {
            np.inf: nearest < exact,
            -np.inf: nearest > exact,
            0.0: np.abs(nearest) > np.abs(exact),
        }[direction]
        want = np.where(beyond, step, nearest)
        assert (want != nearest).any()
    kernel = device.load(objects.hip(SOURCE))["rounded"]
    got = run(device, kernel, (x, y), how, outputs=2 * COUNT)
    np.testing.assert_array_equal(got[:COUNT], want)
    np.testing.assert_array_equal(got[COUNT:], nearest)
