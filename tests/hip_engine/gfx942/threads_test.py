"""Results do not depend on the number of threads, atomics between workgroups included."""

import functools

import numpy as np
import pytest

from hip_engine.gfx942.device import EmulatedDevice
from hip_engine.gfx942.ordering import order_matters
from tests.hip_engine.gfx942 import objects

GROUPS, ITEMS = 400, 64
SOURCE = r"""
#define WORK for (int i = 0; i < 40; i++) asm volatile("v_nop")
DEVICE static float item() { return 1.0f / (1 + bid() * 64 + tid()); }
KERNEL sum(float* out) {
  WORK;
  __hip_atomic_fetch_add(out + (bid() & 1), item(), __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}
KERNEL tickets(u32* out) {
  WORK;
  u32 mine = __hip_atomic_fetch_add(out, 1u, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
  if (tid() == 0) out[16 + bid()] = mine;
}
KERNEL last(u32* out) {
  WORK;
  __hip_atomic_exchange(out, bid(), __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}
KERNEL count(u32* out) {
  WORK;
  __hip_atomic_fetch_add(out + (tid() & 7), bid(), __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
  __hip_atomic_fetch_max(out + 8, bid(), __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}
KERNEL apart(float* out) {
  WORK;
  if (tid() < 2) out[16 + 2 * (bid() & 255) + tid()] = item();
}
"""
IN_ORDER = {"sum": True, "tickets": True, "last": True, "count": False, "apart": False}


@functools.cache
def code(flags: str) -> bytes:
    return objects.hip(SOURCE, "-O2", *flags.split())


def outcome(threads: int, name: str, flags: str) -> np.ndarray:
    device = EmulatedDevice(threads=threads)
    kernel = device.load(code(flags))[name]
    assert kernel.needs_order == IN_ORDER[name]
    out = device.allocate(4096, "out")
    for _ in range(2):  # from the second launch on workgroups are spread over the threads
        device.write(out, np.zeros(1024, np.uint32))
        device.launch(kernel, (GROUPS, 1, 1), (ITEMS, 1, 1), [out])
    return device.read(out, np.uint32, 1024)


@pytest.mark.parametrize("flags", ["", "-munsafe-fp-atomics"])
@pytest.mark.parametrize("name", IN_ORDER)
def test_results_do_not_depend_on_the_threads(name, flags):
    ref = outcome(1, name, flags)
    assert ref.any()
    for threads in (2, 3):
        np.testing.assert_array_equal(ref, outcome(threads, name, flags))


@pytest.mark.parametrize(
    ("text", "matters"),
    [
        ("global_atomic_add_f32 v1, v2, s[0:1]", True),
        ("global_atomic_add v1, v2, s[0:1]", False),
        ("global_atomic_add v0, v1, v2, s[0:1] sc0", True),
        ("flat_atomic_umax_x2 v[0:1], v[2:3]", False),
        ("buffer_atomic_inc v1, v2, s[0:3], 0 offen", True),
        ("buffer_atomic_pk_add_f16 v1, v2, s[0:3], 0 offen", True),
        ("s_atomic_add s4, s[2:3], 0x10 glc", True),
        ("s_buffer_atomic_or s4, s[4:7], 0x10", False),
        ("ds_add_f32 v1, v2", False),
        ("global_load_dword v1, v2, s[0:1] sc0", False),
    ],
)
def test_the_order_of_some_atomics_matters(text, matters):
    assert order_matters(text) == matters
