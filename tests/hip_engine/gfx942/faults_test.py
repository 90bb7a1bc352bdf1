"""What a kernel must not do: each raises DeviceFault and says where, and Python goes on."""

import numpy as np
import pytest

from hip_engine.errors import DeviceFault, LaunchError
from hip_engine.gfx942.device import EmulatedDevice
from tests.hip_engine.gfx942 import objects

KERNELS = """
KERNEL put(int* p, long index, int lane) { if (tid() == lane) p[index] = 7; }
KERNEL get(int* out, volatile const int* p, long index, int lane) {
  out[tid()] = tid() == lane ? p[index] : 0;
}
KERNEL add(int* p, long index) { __atomic_fetch_add(p + index, 1, __ATOMIC_RELAXED); }
KERNEL uniform(int* out, const int* __restrict p, long index) { out[tid()] = p[index]; }
KERNEL trap(int* p) { if (tid() == 70) __builtin_trap(); p[tid()] = 1; }
extern SHARED int dynamic[];
KERNEL lds_put(int index) { dynamic[index] = 1; }
KERNEL lds_get(int* out, int index) { out[tid()] = dynamic[index]; }
KERNEL flat_put(int index) { ((volatile int*)dynamic)[index] = 1; }
KERNEL flat_get(int* out, int index) { out[tid()] = ((volatile int*)dynamic)[index]; }
KERNEL spin(volatile int* p) { while (*p == 0) {} }
KERNEL recurse_in_place(volatile int* p) {
  for (;;) if (p[tid()]) p[0] = 0;
}
"""


FAR = 10**10
"""An index beyond whatever else the tests have allocated."""


@pytest.fixture(scope="module")
def loaded(device):
    return device.load(objects.hip(KERNELS))


@pytest.fixture
def array(device):
    buffer = device.allocate(1024, "the array")
    yield buffer
    device.free(buffer)


def fault(device, kernel, *args, block=128, grid=1, **options) -> DeviceFault:
    """The fault of a launch; the device must still work after it."""
    with pytest.raises(DeviceFault) as caught:
        device.launch(kernel, (grid, 1, 1), (block, 1, 1), args, **options)
    assert kernel.symbol in str(caught.value) and caught.value.kernel == kernel.symbol
    assert caught.value.instruction in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("index", "place"),
    [
        (256, "0 bytes past the end of the array"),
        (300, "176 bytes past the end of the array"),
        (-1, "4 bytes before the array"),
    ],
)
def test_a_store_outside_names_lane_address_and_nearest_allocation(
    device, loaded, array, index, place
):
    error = fault(device, loaded["put"], array, np.int64(index), 69)
    assert (error.wave, error.lane, error.workgroup) == (1, 5, (0, 0, 0))
    assert error.address == array.address + 4 * index
    assert error.instruction.startswith("global_store_dword")
    assert "store" in str(error) and place in str(error) and f"0x{error.address:x}" in str(error)


def test_a_load_outside_names_the_load(device, loaded, array):
    error = fault(device, loaded["get"], array, array, np.int64(FAR), 3)
    assert error.instruction.startswith("flat_load_dword") and "load" in str(error)
    assert (error.wave, error.lane) == (0, 3)


def test_a_scalar_load_outside_faults(device, loaded, array):
    error = fault(device, loaded["uniform"], array, array, np.int64(FAR))
    assert error.instruction.startswith("s_load_dword")
    assert error.address == array.address + 4 * FAR


def test_an_atomic_outside_faults(device, loaded, array):
    assert "atomic" in fault(device, loaded["add"], array, np.int64(256)).instruction


def test_the_last_element_is_inside_and_one_byte_more_is_not(device, loaded, array):
    device.launch(loaded["put"], (1, 1, 1), (64, 1, 1), [array, np.int64(255), 0])
    assert device.read(array, np.int32, 1, 1020)[0] == 7
    shifted = np.uint64(array.address + 1)
    assert fault(device, loaded["put"], shifted, np.int64(255), 0).address == array.address + 1021


def test_a_null_pointer_faults(device, loaded):
    error = fault(device, loaded["put"], np.uint64(0), np.int64(0), 0)
    assert error.address == 0


@pytest.mark.parametrize("address", [2**64 - 4, 2**64 - 1, 2**63, 1, 2**48])
def test_an_address_anywhere_in_64_bits_faults(device, loaded, address):
    assert fault(device, loaded["put"], np.uint64(address), np.int64(0), 0).address == address


def test_a_freed_buffer_is_outside(device, loaded):
    buffer = device.allocate(4096, "short-lived")
    device.launch(loaded["put"], (1, 1, 1), (64, 1, 1), [buffer, np.int64(0), 0])
    device.free(buffer)
    error = fault(device, loaded["put"], buffer, np.int64(0), 0)
    assert "of short-lived" in str(error) and "freed earlier" in str(error)


def test_inactive_lanes_do_not_fault(device, loaded, array):
    device.launch(loaded["put"], (1, 1, 1), (64, 1, 1), [array, np.int64(10**9), 64])


@pytest.mark.parametrize("index", [256, -1, 2**29])
@pytest.mark.parametrize("kernel", ["lds_put", "lds_get", "flat_put", "flat_get"])
def test_lds_outside_the_allocation_faults(device, loaded, array, kernel, index):
    args = [array] * kernel.endswith("get") + [index]
    error = fault(device, loaded[kernel], *args, dynamic_lds_bytes=1024)
    assert error.address == 4 * index % 2**32
    assert error.instruction.startswith("ds_" if "lds" in kernel else "flat_") and "LDS" in str(
        error
    )


SCRATCH = """
KERNEL scratch(int* out, int index) {
  volatile int line[16];
  line[index] = 3;
  out[tid()] = line[(index + 1) % 16];
}
"""


@pytest.mark.parametrize("level", ["-O0", "-O3"])
@pytest.mark.parametrize("index", [10**5, -(10**5)])
def test_scratch_outside_the_lane_faults(device, array, level, index):
    kernel = device.load(objects.hip(SCRATCH, level))["scratch"]
    error = fault(device, kernel, array, index)
    assert "scratch" in str(error)


def test_a_trap_names_its_instruction(device, loaded, array):
    error = fault(device, loaded["trap"], array)
    assert error.instruction.startswith("s_trap") and "trap" in str(error)
    assert error.wave == 1


def test_a_wild_jump_faults(device):
    body = "  s_mov_b64 s[4:5], 0x1234\n  s_setpc_b64 s[4:5]"
    text = objects.kernel_text("wild", body, pointers=0)
    error = fault(device, device.load(objects.kernels(text))["wild"])
    assert error.instruction.startswith("s_setpc_b64") and error.address == 0x1234


JUMPS = """
  s_getpc_b64 s[4:5]
  s_add_u32 s4, s4, 8
  s_branch target
target:
  s_setpc_b64 s[4:5]
"""


@pytest.mark.parametrize("kernel", ["spin", "recurse_in_place", "jumps"])
def test_a_runaway_wave_stops_at_the_budget_and_names_its_place(kernel):
    device = EmulatedDevice(threads=2, budget=100_000)
    text = objects.kernel_text("jumps", JUMPS, pointers=0)
    code = objects.kernels(text) if kernel == "jumps" else objects.hip(KERNELS)
    buffer = device.allocate(4096, "zeros")
    args = [] if kernel == "jumps" else [buffer]
    entry = device.load(code)[kernel]
    with pytest.raises(DeviceFault, match="more than 100000 instructions") as caught:
        device.launch(entry, (4, 1, 1), (64, 1, 1), args)
    assert caught.value.offset > 0
    assert caught.value.instruction in str(caught.value)
    assert caught.value.workgroup == (0, 0, 0)


def test_the_first_faulting_workgroup_is_reported_whatever_the_threads():
    for threads in (1, 2, 3):
        device = EmulatedDevice(threads=threads)
        buffer = device.allocate(4 * 256 * 5, "five groups")
        source = "KERNEL past(int* p) { p[256 * bid() + tid()] = 1; }"
        kernel = device.load(objects.hip(source))["past"]
        error = fault(device, kernel, buffer, block=256, grid=9)
        assert (error.workgroup, error.wave, error.lane) == ((5, 0, 0), 0, 0)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "takes 3 arguments, 0 given"),
        ((1, 2, 3, 4), "takes 3 arguments, 4 given"),
        ((0, 0, 2**32), "argument 2"),
        ((0, np.int32(0), 0), "argument 1"),
        ((0, 0, "text"), "argument 2"),
        ((0, 0, b"12345"), "argument 2"),
        ((0.5, 0, None), "argument 2"),
        ((0, 0, np.zeros(2, np.int32)), "argument 2"),
    ],
)
def test_wrong_arguments_are_refused_before_the_launch(device, loaded, args, words):
    with pytest.raises(LaunchError, match=f"put.*{words}"):
        device.launch(loaded["put"], (1, 1, 1), (64, 1, 1), args)


@pytest.mark.parametrize(
    ("grid", "block", "words"),
    [
        ((0, 1, 1), (64, 1, 1), "positive"),
        ((1, 1, 1), (0, 1, 1), "positive"),
        ((1, -1, 1), (64, 1, 1), "positive"),
        ((1, 1), (64, 1, 1), "3 positive sizes"),
        ((2**31, 1, 1), (64, 1, 1), "too large"),
        ((1, 1, 1), (32, 33, 1), "1056 work-items"),
    ],
)
def test_impossible_geometry_is_refused(device, loaded, array, grid, block, words):
    with pytest.raises(LaunchError, match=words):
        device.launch(loaded["put"], grid, block, [array, 0, 0])


def test_lds_over_64_kib_is_refused(device, loaded):
    device.launch(loaded["lds_put"], (1, 1, 1), (64, 1, 1), [2**14 - 1], 2**16)
    with pytest.raises(LaunchError, match="65540 bytes of LDS"):
        device.launch(loaded["lds_put"], (1, 1, 1), (64, 1, 1), [0], 2**16 + 4)


def test_a_block_over_the_kernels_own_limit_is_refused(device, array):
    source = "__attribute__((amdgpu_flat_work_group_size(1, 128))) KERNEL small(int* p) { *p = 1; }"
    kernel = device.load(objects.hip(source))["small"]
    with pytest.raises(LaunchError, match="129 work-items; it takes 128"):
        device.launch(kernel, (1, 1, 1), (129, 1, 1), [array])
