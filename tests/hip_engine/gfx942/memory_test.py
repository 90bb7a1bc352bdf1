"""Device memory: allocation, guard zones, host access, and exact read and write sets."""

import numpy as np
import pytest

from hip_engine.errors import LaunchError, OutOfDeviceMemory
from hip_engine.gfx942.device import EmulatedDevice
from hip_engine.gfx942.memory import ARENA_BYTES, GUARD_BYTES
from tests.hip_engine.gfx942 import objects


@pytest.fixture(scope="module")
def fresh():
    return EmulatedDevice(threads=1)


def test_memory_comes_zeroed_aligned_and_guarded(fresh):
    buffers = [fresh.allocate(n, f"{n} bytes") for n in (1, 4095, 4096, 70001)]
    for before, after in zip(buffers, buffers[1:], strict=False):
        assert after.address - (before.address + before.nbytes) >= GUARD_BYTES
    for buffer in buffers:
        assert buffer.address % 256 == 0
        assert not fresh.read(buffer, np.uint8, buffer.nbytes).any()
        fresh.free(buffer)


def test_freed_memory_is_reused_and_zeroed(fresh):
    first = fresh.allocate(10000, "first")
    fresh.write(first, np.full(10000, 7, np.uint8))
    fresh.free(first)
    second = fresh.allocate(10000, "second")
    assert second.address == first.address
    assert not fresh.read(second, np.uint8, 10000).any()
    fresh.free(second)


def test_out_of_memory_changes_nothing(fresh):
    kept = fresh.allocate(64, "kept")
    fresh.write(kept, np.arange(64, dtype=np.uint8))
    large = fresh.allocate(ARENA_BYTES // 2, "half of the memory")
    for nbytes in (ARENA_BYTES, ARENA_BYTES // 2, 2**70):
        with pytest.raises(OutOfDeviceMemory, match=f"{nbytes} bytes for the rest"):
            fresh.allocate(nbytes, "the rest")
    np.testing.assert_array_equal(fresh.read(kept, np.uint8, 64), np.arange(64))
    fresh.free(large)
    fresh.free(fresh.allocate(ARENA_BYTES // 2, "half again"))
    fresh.free(kept)


@pytest.mark.parametrize("nbytes", [0, -1])
def test_an_empty_allocation_is_refused(fresh, nbytes):
    with pytest.raises(LaunchError, match="positive"):
        fresh.allocate(nbytes, "nothing")


def test_a_buffer_is_freed_once(fresh):
    buffer = fresh.allocate(64, "once")
    fresh.free(buffer)
    with pytest.raises(LaunchError, match="once: not a live allocation"):
        fresh.free(buffer)
    with pytest.raises(LaunchError, match="not a live allocation"):
        fresh.read(buffer, np.uint8, 1)
    with pytest.raises(LaunchError, match="not a live allocation"):
        fresh.write(buffer, np.zeros(1, np.uint8))


@pytest.mark.parametrize(("count", "offset"), [(65, 0), (1, 64), (1, -1), (-1, 0), (64, 1)])
def test_the_host_stays_inside_a_buffer(fresh, count, offset):
    buffer = fresh.allocate(64, "small")
    with pytest.raises(LaunchError, match="small, which has 64"):
        fresh.read(buffer, np.uint8, count, offset)
    if count > 0:
        with pytest.raises(LaunchError, match="small, which has 64"):
            fresh.write(buffer, np.zeros(count, np.uint8), offset)
    fresh.free(buffer)


def test_host_arrays_arrive_whatever_their_layout(fresh):
    buffer = fresh.allocate(4096, "array")
    array = np.arange(60, dtype=np.float16).reshape(3, 20)[:, ::2]
    fresh.write(buffer, array, 100)
    np.testing.assert_array_equal(fresh.read(buffer, np.float16, 30, 100), array.ravel())
    fresh.free(buffer)


TOUCH = """
typedef int int4_t __attribute__((ext_vector_type(4)));
KERNEL touch(int4_t* out, const unsigned char* bytes, unsigned short* halves, int* counter,
             const int* uniform, int first) {
  u32 t = tid();
  if (t % 3 == 0) out[first + t] = bytes[2 * t] + uniform[9];
  if (t == 5) halves[11] = 0;
  if (t < 2) __atomic_fetch_add(counter + 1, 1, __ATOMIC_RELAXED);
}
"""


def test_the_access_log_holds_exactly_the_bytes_touched(fresh):
    kernel = fresh.load(objects.hip(TOUCH))["touch"]
    names = ("out", "bytes", "halves", "counter", "uniform")
    sizes = (16 * 80, 200, 64, 16, 64)
    buffers = [fresh.allocate(n, name) for n, name in zip(sizes, names, strict=True)]
    with fresh.watch() as log:
        fresh.launch(kernel, (1, 1, 1), (70, 1, 1), [*buffers, 4])
    fresh.launch(kernel, (1, 1, 1), (70, 1, 1), [*buffers, 0])  # outside the watch
    lanes = np.arange(0, 70, 3)
    ref = {
        name: (np.zeros(n, bool), np.zeros(n, bool)) for n, name in zip(sizes, names, strict=True)
    }
    ref["out"][1].reshape(-1, 16)[4 + lanes] = True
    ref["bytes"][0][2 * lanes] = True
    ref["halves"][1][22:24] = True
    ref["counter"][1][4:8] = True
    ref["uniform"][0][36:40] = True
    for name, buffer in zip(names, buffers, strict=True):
        if name != "counter":
            np.testing.assert_array_equal(ref[name][0], log.read(buffer), err_msg=name)
        np.testing.assert_array_equal(ref[name][1], log.written(buffer), err_msg=name)
        fresh.free(buffer)


def test_of_buffers_that_are_named_only_those_are_logged(fresh):
    kernel = fresh.load(objects.hip(TOUCH))["touch"]
    buffers = [fresh.allocate(n, "array") for n in (16 * 80, 200, 64, 16, 64)]
    *_, halves, counter, uniform = buffers
    with fresh.watch([halves, counter, uniform]) as log:
        fresh.launch(kernel, (1, 1, 1), (70, 1, 1), [*buffers, 4])
    assert np.flatnonzero(log.written(halves)).tolist() == [22, 23]
    assert np.flatnonzero(log.written(counter)).tolist() == [4, 5, 6, 7]
    assert np.flatnonzero(log.read(uniform)).tolist() == [36, 37, 38, 39]
    for buffer in buffers[:2]:
        assert not log.read(buffer).any() and not log.written(buffer).any()
    for buffer in buffers:
        fresh.free(buffer)


def test_a_new_watch_forgets_the_last(fresh):
    kernel = fresh.load(objects.hip("KERNEL one(int* p, int i) { p[i] = 1; }"))["one"]
    buffer = fresh.allocate(64, "array")
    for index in (3, 5):
        with fresh.watch() as log:
            fresh.launch(kernel, (1, 1, 1), (1, 1, 1), [buffer, index])
        assert np.flatnonzero(log.written(buffer)).tolist() == [*range(4 * index, 4 * index + 4)]
    fresh.free(buffer)
