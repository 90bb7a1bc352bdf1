"""Counters of a launch against what its kernels must do."""

import functools

import numpy as np
import pytest

from hip_engine.gfx942.device import EmulatedDevice
from tests.hip_engine.gfx942 import objects

BUFFER_BYTES = 4096
SOURCE = r"""
typedef _Float16 half4 __attribute__((ext_vector_type(4)));
typedef float float4 __attribute__((ext_vector_type(4)));
typedef float float16 __attribute__((ext_vector_type(16)));
KERNEL copy(const int* t, int* out) { out[tid()] = t[tid()]; }
KERNEL strided(const int* t, int* out, int stride) { out[tid()] = t[(tid() * stride) & 1023]; }
KERNEL uniform_sum(const int* t, int* out) {
  int sum = 0;
  for (int i = 0; i < 16; i++) sum += t[i];
  if (tid() == 0) out[bid()] = sum;
}
KERNEL count_up(int* out) {
  __hip_atomic_fetch_add(out, 1, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}
KERNEL two_in_flight(const int* t, int* out) { out[tid()] = t[tid()] + t[tid() + 512]; }
KERNEL through_lds(const int* t, int* out, int stride) {
  SHARED int x[4096];
  x[(tid() * stride) & 4095] = t[tid()];
  barrier();
  out[tid()] = x[(tid() * stride) & 4095];
}
KERNEL wide_through_lds(const float4* t, float4* out, int stride) {
  SHARED float4 x[1024];
  x[(tid() * stride) & 1023] = t[tid()];
  barrier();
  out[tid()] = x[(tid() * stride) & 1023];
}
KERNEL matrices(const half4* a, float* c, int n) {
  float4 x = {};
  float16 y = {};
  for (int i = 0; i < n; i++) {
    x = __builtin_amdgcn_mfma_f32_16x16x16f16(a[tid()], a[tid()], x, 0, 0, 0);
    y = __builtin_amdgcn_mfma_f32_32x32x8f16(a[tid()], a[tid()], y, 0, 0, 0);
    y = __builtin_amdgcn_mfma_f32_32x32x8f16(a[tid()], a[tid()], y, 0, 0, 0);
  }
  c[tid()] = x[0] + y[0];
}
"""


@functools.cache
def code_object() -> bytes:
    return objects.hip(SOURCE, "-O2")


def launched(kernel: str, groups: int, items: int, *values, buffers: int = 2):
    device = EmulatedDevice(counters=True)
    given = [device.allocate(BUFFER_BYTES, name) for name in "ab"[:buffers]]
    entry = device.load(code_object())[kernel]
    return device.launch(entry, (groups, 1, 1), (items, 1, 1), [*given, *values]), given


def test_loads_and_stores_by_buffer_line_and_wave():
    record, (source, out) = launched("copy", 2, 128)
    counts = record.memory
    assert (counts.loads, counts.stores) == (4, 4)
    assert counts.load_bytes == counts.store_bytes == 4 * 256
    assert counts.load_lines == 4 * 2, "64 dwords are two 128-byte lines"
    assert counts.by_buffer == {source: (4 * 256, 0, 0, 4 * 2), out: (0, 4 * 256, 0, 0)}
    assert sum(record.blocks.values()) >= 4, "every wave entered the kernel"
    assert counts.flight_peak == 1, "the store waits for the load it stores"


@pytest.mark.parametrize(("stride", "lines"), [(0, 1), (1, 2), (2, 4), (8, 16), (32, 32)])
def test_distinct_lines_of_a_load(stride, lines):
    record, _ = launched("strided", 1, 64, stride)
    assert record.memory.load_lines == lines  # 1,024 dwords are 32 lines in all


def test_scalar_loads_and_atomics_are_in_the_bytes_of_a_buffer():
    record, (source, out) = launched("uniform_sum", 3, 64)
    assert record.memory.by_buffer == {source: (3 * 64, 0, 0, 0), out: (0, 3 * 4, 0, 0)}
    record, (out,) = launched("count_up", 1, 64, buffers=1)
    moved = record.memory.by_buffer[out]
    assert moved.read == moved.written > 0


def test_independent_loads_are_in_flight_together():
    record, _ = launched("two_in_flight", 1, 64)
    assert record.memory.flight_peak == 2


@pytest.mark.parametrize(("stride", "passes"), [(1, 2), (2, 4), (32, 64), (33, 2), (0, 2)])
def test_lds_passes_count_bank_conflicts(stride, passes):
    record, _ = launched("through_lds", 1, 128, stride)
    assert record.memory.lds_accesses == 4
    assert record.memory.lds_passes == 4 * passes
    assert record.executed["barrier"] == 2, "each of two waves waits once"


@pytest.mark.parametrize(("stride", "passes"), [(1, 8), (2, 16), (8, 64), (9, 8), (0, 8)])
def test_eight_lanes_of_16_bytes_share_a_pass(stride, passes):
    record, _ = launched("wide_through_lds", 1, 64, stride)
    assert record.memory.lds_accesses == 2
    assert record.memory.lds_passes == 2 * passes


def test_mfma_by_shape():
    record, _ = launched("matrices", 2, 64, 5)
    assert record.mfma == {"f32_16x16x16_f16": 2 * 5, "f32_32x32x8_f16": 2 * 10}
    assert record.executed["mfma"] == 2 * 15


def test_counters_do_not_change_results():
    out = []
    for counters in (False, True):
        device = EmulatedDevice(counters=counters)
        a, b = (device.allocate(BUFFER_BYTES, name) for name in "ab")
        device.write(a, np.arange(1024, dtype=np.int32))
        kernel = device.load(code_object())["strided"]
        device.launch(kernel, (1, 1, 1), (64, 1, 1), [a, b, 7])
        out.append(device.read(b, np.int32, 64))
    np.testing.assert_array_equal(*out)
