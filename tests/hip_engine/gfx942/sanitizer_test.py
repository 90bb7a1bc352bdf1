"""Each sanitizer against a kernel that it must catch and one, a step away, that it must not."""

import functools

import numpy as np
import pytest

from hip_engine.errors import DeviceFault, LaunchError, SanitizerError, SanitizerFault
from hip_engine.gfx942.device import EmulatedDevice
from hip_engine.gfx942.sanitizer import CHECKS
from tests.hip_engine.gfx942 import objects

SOURCE = r"""
KERNEL atomic_at(char* a, int offset) {
  __hip_atomic_fetch_add((int*)(a + offset), 1, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}
KERNEL global_at(char* a, int offset) { *(volatile int*)(a + offset) = 1; }
KERNEL two_bytes_at(char* a, int offset) { *(volatile short*)(a + offset) = 1; }
KERNEL lds_at(int* out, int offset) {
  SHARED int x[4];
  x[tid() & 3] = 0;
  out[0] = *(volatile int*)((SHARED char*)x + offset);
}
KERNEL scratch_at(int* out, int offset) {
  volatile int x[4] = {};
  out[0] = *(volatile int*)((volatile char*)x + offset);
}
KERNEL lds_atomic_at(int* out, int offset) {
  SHARED int x[4];
  x[tid() & 3] = 0;
  __hip_atomic_fetch_add((SHARED int*)((SHARED char*)x + offset), 1, __ATOMIC_RELAXED,
                         __HIP_MEMORY_SCOPE_WORKGROUP);
  out[0] = x[0];
}
KERNEL scalar_at(const char* a, int* out, int offset) {
  int x;
  const char* p = a + offset;
  asm volatile("s_load_dword %0, %1, 0x0\n s_waitcnt lgkmcnt(0)" : "=s"(x) : "s"(p));
  out[0] = x;
}
KERNEL swapped_in(int* out) {
  SHARED int x[64];
  __hip_atomic_exchange(&x[tid()], 1, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP);
  barrier();
  if (x[63 - tid()] == 1) out[tid()] = 7;
}
KERNEL sum_of_sixteen(const int* a, int* out) {
  int sum = 0;
  for (int i = 0; i < 16; i++) sum += a[i];
  out[tid()] = sum;
}
KERNEL lds_exchange(int* out, int wait) {
  SHARED int x[256];
  x[tid()] = tid();
  if (wait) barrier(); else __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
  out[tid()] = x[255 - tid()];
}
KERNEL lds_within_a_wave(int* out) {
  SHARED int x[256];
  x[tid()] = tid();
  __builtin_amdgcn_fence(__ATOMIC_ACQ_REL, "wavefront");
  out[tid()] = x[tid() ^ 63];
}
KERNEL global_exchange(int* out, int* t, int wait) {
  t[tid()] = tid();
  if (wait) barrier();
  out[tid()] = ((volatile int*)t)[255 - tid()];
}
KERNEL lds_counter(int* out, int atomic) {
  SHARED int x;
  if (tid() == 0) x = 0;
  barrier();
  if (atomic) __hip_atomic_fetch_add(&x, 1, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP);
  else x = x + 1;
  barrier();
  out[tid()] = x;
}
KERNEL barrier_for(int* out, int waves) {
  if (tid() / 64 < (u32)waves) barrier();
  out[tid()] = tid();
}
KERNEL lds_table(int* out, int filled) {
  SHARED int x[128];
  if ((int)tid() < filled) x[tid()] = tid();
  barrier();
  out[64 + tid()] = out[x[tid() & 127] & 63];
}
KERNEL branch_on(const int* t, int* out) { out[tid()] = t[tid()] > 3 ? 7 : out[t[tid()] & 63]; }
KERNEL copy(const int* t, int* out) { out[tid()] = t[tid()]; }
KERNEL register_77(int* out, int use) {
  int x;
  if (use) asm volatile("v_mov_b32 %0, v77" : "=v"(x)); else x = tid();
  out[x & 63] = 1;
}
KERNEL loaded(const int* a, int* out, int wait) {
  int x;
  const int* p = a + tid();
  asm volatile("global_load_dword %0, %1, off" : "=&v"(x) : "v"(p));
  if (wait) asm volatile("s_waitcnt vmcnt(0)" : "+v"(x));
  asm volatile("v_add_u32 %0, 1, %0" : "+v"(x));
  out[tid()] = x;
}
KERNEL lds_loaded(int* out, int wait) {
  SHARED int x[64];
  x[tid()] = tid();
  int y, at = (int)(u64)(__attribute__((address_space(3))) int*)&x[tid()];
  asm volatile("s_waitcnt lgkmcnt(0)" ::: "memory");
  if (wait)
    asm volatile("ds_read_b32 %0, %1\n s_waitcnt lgkmcnt(0)\n v_add_u32 %0, 1, %0"
                 : "=&v"(y) : "v"(at));
  else
    asm volatile("ds_read_b32 %0, %1\n v_add_u32 %0, 1, %0" : "=&v"(y) : "v"(at));
  out[tid()] = y;
}
"""

# check, kernel, work-items, arguments that it must catch, arguments that it must not.
CASES = (
    ("memory", "atomic_at", 1, ("zeroed", 2), ("zeroed", 4)),
    ("memory", "lds_atomic_at", 1, ("zeroed", 2), ("zeroed", 4)),
    ("memory", "scalar_at", 1, ("zeroed", "zeroed", 2), ("zeroed", "zeroed", 4)),
    ("align", "global_at", 1, ("zeroed", 2), ("zeroed", 4)),
    ("align", "two_bytes_at", 1, ("zeroed", 1), ("zeroed", 2)),
    ("align", "lds_at", 4, ("zeroed", 2), ("zeroed", 4)),
    ("align", "scratch_at", 1, ("zeroed", 2), ("zeroed", 4)),
    ("race", "lds_exchange", 256, ("zeroed", 0), ("zeroed", 1)),
    ("race", "global_exchange", 256, ("zeroed", "zeroed", 0), ("zeroed", "zeroed", 1)),
    ("race", "lds_counter", 256, ("zeroed", 0), ("zeroed", 1)),
    ("race", "barrier_for", 256, ("zeroed", 2), ("zeroed", 4)),
    ("init", "lds_table", 128, ("zeroed", 100), ("zeroed", 128)),
    ("init", "branch_on", 64, ("raw", "zeroed"), ("zeroed", "zeroed")),
    ("init", "register_77", 64, ("zeroed", 1), ("zeroed", 0)),
    ("waitcnt", "loaded", 64, ("zeroed", "zeroed", 0), ("zeroed", "zeroed", 1)),
    ("waitcnt", "lds_loaded", 64, ("zeroed", 0), ("zeroed", 1)),
)
BUFFER_BYTES = 2048


@functools.cache
def code_object() -> bytes:
    return objects.hip(SOURCE, "-O2", "-g")


def launch(sanitize, kernel: str, items: int, arguments):
    device = EmulatedDevice(sanitize=sanitize)
    values = []
    for argument in arguments:
        if isinstance(argument, str):
            buffer = device.allocate(BUFFER_BYTES, argument)
            if argument == "zeroed":
                device.write(buffer, np.zeros(BUFFER_BYTES, np.uint8))
            argument = buffer
        values.append(argument)
    device.launch(device.load(code_object())[kernel], (1, 1, 1), (items, 1, 1), values)
    return device, values


@pytest.mark.parametrize(("check", "kernel", "items", "bad", "good"), CASES)
def test_a_sanitizer_catches_its_fault_and_nothing_else(check, kernel, items, bad, good):
    with pytest.raises(SanitizerFault) as caught:
        launch([check], kernel, items, bad)
    assert caught.value.kind == check
    message = str(caught.value)
    assert kernel in message and "workgroup (0, 0, 0)" in message and "lane" in message
    assert "source:" in message, "the source line is named when there is debug info"
    launch([check], kernel, items, good)
    launch([], kernel, items, bad)  # without the sanitizer the launch passes, as on the chip


@pytest.mark.parametrize(("kernel", "items", "good"), [(c[1], c[2], c[4]) for c in CASES])
def test_all_sanitizers_together_accept_every_good_kernel(kernel, items, good):
    launch(list(CHECKS), kernel, items, good)


def test_the_widest_scalar_loads_are_followed():
    launch(list(CHECKS), "sum_of_sixteen", 256, ("zeroed", "zeroed"))


def test_an_exchange_writes_what_was_never_written():
    device, (out,) = launch(list(CHECKS), "swapped_in", 64, ("zeroed",))
    np.testing.assert_array_equal(device.read(out, np.int32, 64), 7)


def test_exchange_within_a_wave_needs_no_barrier():
    launch(["race"], "lds_within_a_wave", 256, ("zeroed",))


def test_copies_carry_undefined_bytes_to_the_host_read_that_reports_them():
    device, (source, out) = launch(["init"], "copy", 64, ("raw", "zeroed"))
    with pytest.raises(SanitizerError, match="byte 0 of zeroed"):
        device.read(out, np.int32, 64)
    device.write(source, np.arange(64, dtype=np.int32))
    device.launch(device.load(code_object())["copy"], (1, 1, 1), (64, 1, 1), [source, out])
    np.testing.assert_array_equal(device.read(out, np.int32, 64), np.arange(64))


@pytest.mark.parametrize("kernel", ["lds_at", "scratch_at", "global_at"])
def test_an_access_outside_is_a_fault_with_and_without_the_sanitizer(kernel):
    for checks in ([], ["memory"]):
        launch(checks, kernel, 4, ("zeroed", 12))
        with pytest.raises(DeviceFault, match=kernel):
            launch(checks, kernel, 4, ("zeroed", BUFFER_BYTES - 2))


def test_freed_memory_is_not_given_out_again_under_the_memory_sanitizer():
    device = EmulatedDevice(sanitize="memory")
    old = device.allocate(BUFFER_BYTES, "old")
    device.free(old)
    new = device.allocate(BUFFER_BYTES, "new")
    assert new.address != old.address
    kernel = device.load(code_object())["global_at"]
    with pytest.raises(DeviceFault, match="at byte 4 of old .* freed earlier"):
        device.launch(kernel, (1, 1, 1), (1, 1, 1), [old.address, 4])


def test_findings_name_the_register_and_the_byte():
    with pytest.raises(SanitizerFault, match=r"waitcnt: .* v\d+ "):
        launch(["waitcnt"], "loaded", 64, ("zeroed", "zeroed", 0))
    with pytest.raises(SanitizerFault, match=r"race: .* at byte \d+ of zeroed"):
        launch(["race"], "global_exchange", 256, ("zeroed", "zeroed", 0))


def test_an_unknown_sanitizer_is_refused_with_those_there_are():
    with pytest.raises(LaunchError, match="unknown sanitizer leaks: .*memory, init, .*, align"):
        EmulatedDevice(sanitize="leaks")


def test_sanitizers_do_not_change_results():
    outputs = []
    for checks in ([], list(CHECKS)):
        device, (out, _) = launch(checks, "lds_exchange", 256, ("zeroed", 1))
        outputs.append(device.read(out, np.int32, 256))
    np.testing.assert_array_equal(*outputs)
