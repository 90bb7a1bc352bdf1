"""Arrays that live in registers, indexed at run time (s_set_gpr_idx_on)."""

import numpy as np
import pytest

from hip_engine.gfx942.disassembly import disassemble
from tests.hip_engine.gfx942 import objects

SOURCE = """
KERNEL shuffle(const float* a, float* out, int n, int m) {
  float x[16];
#pragma unroll
  for (int i = 0; i < 16; i++) x[i] = a[tid() * 16 + i];
  x[n & 15] = x[m & 15] + 1;
  x[(n + m) & 15] *= 2;
#pragma unroll
  for (int i = 0; i < 16; i++) out[tid() * 16 + i] = x[i];
}
"""


@pytest.mark.parametrize(("n", "m"), [(0, 0), (3, 15), (15, 1), (7, 7), (9, 8)])
def test_registers_are_read_and_written_by_index(device, n, m):
    code = objects.hip(SOURCE)
    assert any(i.mnemonic == "s_set_gpr_idx_on" for i in disassemble(code))
    x = np.arange(64 * 16, dtype=np.float32).reshape(64, 16)
    source, out = (device.allocate(x.nbytes, name) for name in ("a", "out"))
    device.write(source, x)
    device.launch(device.load(code)["shuffle"], (1, 1, 1), (64, 1, 1), [source, out, n, m])
    x[:, n] = x[:, m] + 1
    x[:, (n + m) % 16] *= 2
    np.testing.assert_array_equal(device.read(out, np.float32, x.size).reshape(x.shape), x)
