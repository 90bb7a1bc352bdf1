"""Launches of real clang code objects: geometry, barriers, LDS, calls, scratch, globals."""

from contextlib import contextmanager

import numpy as np
import pytest

from hip_engine.gfx942.device import EmulatedDevice
from tests.hip_engine.gfx942 import objects

LEVELS = ("-O0", "-O1", "-O3")


@contextmanager
def buffers(device, *arrays):
    """Device copies of arrays, freed at the end."""
    made = [device.allocate(a.nbytes, f"array {i}") for i, a in enumerate(arrays)]
    for buffer, array in zip(made, arrays, strict=True):
        device.write(buffer, array)
    try:
        yield made
    finally:
        for buffer in made:
            device.free(buffer)


def run(device, kernel, grid, block, out, *args, dynamic_lds_bytes=0):
    """Launch with a copy of `out` as the first argument; returns what the kernel left in it."""
    with buffers(device, out) as (buffer,):
        device.launch(kernel, grid, block, [buffer, *args], dynamic_lds_bytes)
        return device.read(buffer, out.dtype, out.size).reshape(out.shape)


REVERSE = """
KERNEL reverse(int* out, int n) {
  SHARED int line[512];
  line[tid()] = 3 * tid() + bid();
  barrier();
  out[bid() * n + tid()] = line[n - 1 - tid()];
}
"""


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("items", [1, 63, 64, 65, 333, 512])
def test_waves_exchange_through_lds_across_a_barrier(device, level, items):
    kernel = device.load(objects.hip(REVERSE, level))["reverse"]
    got = run(device, kernel, (3, 1, 1), (items, 1, 1), np.zeros((3, items), np.int32), items)
    ref = 3 * np.arange(items)[::-1] + np.arange(3)[:, None]
    np.testing.assert_array_equal(ref, got)


TREE = """
KERNEL tree(u64* out, const u32* in) {
  SHARED u64 line[1024];
  u32 t = tid();
  line[t] = in[bid() * 1024 + t];
  for (u32 step = 512; step; step /= 2) {
    barrier();
    if (t < step) line[t] += line[t + step];
  }
  if (!t) out[bid()] = line[0];
}
"""


@pytest.mark.parametrize("level", LEVELS)
def test_sixteen_waves_reduce_in_a_tree_of_barriers(device, level):
    values = np.random.default_rng(0).integers(0, 2**32, (5, 1024), np.uint32)
    kernel = device.load(objects.hip(TREE, level))["tree"]
    with buffers(device, values) as (data,):
        got = run(device, kernel, (5, 1, 1), (1024, 1, 1), np.zeros(5, np.uint64), data)
    np.testing.assert_array_equal(values.sum(1, dtype=np.uint64), got)


COLLATZ = """
KERNEL collatz(int* out, int items) {
  u32 i = bid() * 100 + tid();
  if (i >= items) return;
  u64 n = i + 1;
  int steps = 0;
  while (n != 1) {
    if (n & 1) { n = 3 * n + 1; if (steps > 150) break; }
    else n /= 2;
    steps++;
  }
  out[i] = steps;
}
"""


def collatz_steps(n: int) -> int:
    steps = 0
    while n != 1:
        if n & 1 and steps > 150:
            return steps
        n = 3 * n + 1 if n & 1 else n // 2
        steps += 1
    return steps


@pytest.mark.parametrize("level", LEVELS)
def test_lanes_leave_a_divergent_loop_one_by_one(device, level):
    items = 777
    kernel = device.load(objects.hip(COLLATZ, level))["collatz"]
    got = run(device, kernel, (8, 1, 1), (100, 1, 1), np.full(800, -1, np.int32), items)
    ref = [collatz_steps(i + 1) for i in range(items)] + [-1] * 23
    np.testing.assert_array_equal(ref, got)


EARLY = """
KERNEL early(int* out) {
  SHARED int line[256];
  u32 t = tid(), wave = t / 64;
  line[t] = t;
  if (__builtin_amdgcn_readfirstlane(wave) & 1) return;
  barrier();
  out[t] = line[(t + 128) % 256];
  barrier();
  line[t] = out[t] + 1;
  barrier();
  out[t + 256] = line[t ^ 128];
}
"""


def test_waves_that_ended_do_not_hold_up_a_barrier(device):
    kernel = device.load(objects.hip(EARLY))["early"]
    got = run(device, kernel, (1, 1, 1), (256, 1, 1), np.full((2, 256), -1, np.int32))
    t = np.arange(256)
    stayed = t // 64 % 2 == 0
    np.testing.assert_array_equal(np.where(stayed, (t + 128) % 256, -1), got[0])
    np.testing.assert_array_equal(
        np.where(stayed, (t ^ 128) ^ 128, 0) + 1, got[1] * stayed + ~stayed
    )


GEOMETRY = """
KERNEL geometry(u32* out) {
  u32 tx = __builtin_amdgcn_workitem_id_x(), ty = __builtin_amdgcn_workitem_id_y(),
      tz = __builtin_amdgcn_workitem_id_z();
  u32 bx = __builtin_amdgcn_workgroup_id_x(), by = __builtin_amdgcn_workgroup_id_y(),
      bz = __builtin_amdgcn_workgroup_id_z();
  u32 nx = __builtin_amdgcn_workgroup_size_x(), ny = __builtin_amdgcn_workgroup_size_y(),
      nz = __builtin_amdgcn_workgroup_size_z();
  u32 gx = __builtin_amdgcn_grid_size_x(), gy = __builtin_amdgcn_grid_size_y();
  u32 x = bx * nx + tx, y = by * ny + ty, z = bz * nz + tz;
  u32 i = (z * gy + y) * gx + x;
  u32* item = out + 12 * i;
  item[0] = tx; item[1] = ty; item[2] = tz; item[3] = bx; item[4] = by; item[5] = bz;
  item[6] = nx; item[7] = ny; item[8] = nz; item[9] = gx; item[10] = gy;
  item[11] = __builtin_amdgcn_grid_size_z();
}
"""


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("grid", "block"),
    [((3, 2, 4), (5, 3, 2)), ((1, 1, 7), (1, 1, 65)), ((2, 3, 1), (8, 64, 2))],
    ids=["primes", "deep", "full_block"],
)
def test_three_dimensional_ids_and_hidden_sizes(device, level, grid, block):
    kernel = device.load(objects.hip(GEOMETRY, level))["geometry"]
    total = np.multiply(grid, block)
    count = int(np.prod(total))
    got = run(device, kernel, grid, block, np.full((count, 12), -1, np.int32))
    z, y, x = np.unravel_index(np.arange(count), total[::-1])
    xyz = np.stack([x, y, z], -1)
    sizes = np.broadcast_to([*block, *total], (count, 6))
    np.testing.assert_array_equal(np.hstack([xyz % block, xyz // block, sizes]), got)


IMPLICIT = """
KERNEL implicit(u32* out, unsigned char first, u64 second) {
  const unsigned char* p = (const unsigned char*)__builtin_amdgcn_implicitarg_ptr();
  for (int i = 0; i < 3; i++) {
    out[i] = ((const u32*)p)[i];
    out[3 + i] = ((const unsigned short*)(p + 12))[i];
  }
  out[6] = first;
  *(u64*)(out + 8) = second;
}
"""


def test_hidden_arguments_follow_the_explicit_ones(device):
    kernel = device.load(objects.hip(IMPLICIT))["implicit"]
    out = np.zeros(10, np.uint32)
    got = run(device, kernel, (2, 3, 5), (7, 4, 1), out, np.uint8(200), 2**63 + 5)
    np.testing.assert_array_equal([2, 3, 5, 7, 4, 1, 200, 0, 5, 2**31], got)


GLOBALS = """
DEVICE int table[8] = {5, 3, 8, 1, 9, 2, 7, 4};
DEVICE int* middle = &table[4];
DEVICE const int powers[4] = {1, 10, 100, 1000};
NOINLINE int twice(int x) { return 2 * x; }
NOINLINE int square(int x) { return x * x; }
NOINLINE int next(int x) { return x + 1; }
typedef int (*Function)(int);
DEVICE Function functions[3] = {twice, square, next};
KERNEL globals(int* out, int index) {
  u32 t = tid();
  out[t] = table[t % 8] * powers[t % 4] + *(middle - 2);
  out[64 + t] = functions[(index + t / 64) % 3](t);
}
KERNEL store(int* out, int value) { table[tid()] = value + tid(); out[0] = middle[1]; }
"""


@pytest.mark.parametrize("level", LEVELS)
def test_global_variables_relocations_and_function_pointers(device, level):
    loaded = device.load(objects.hip(GLOBALS, level))
    t = np.arange(64)
    table, powers = np.array([5, 3, 8, 1, 9, 2, 7, 4]), np.array([1, 10, 100, 1000])
    for index, function in enumerate((lambda x: 2 * x, lambda x: x * x, lambda x: x + 1)):
        out = np.zeros((2, 64), np.int32)
        got = run(device, loaded["globals"], (1, 1, 1), (64, 1, 1), out, index)
        np.testing.assert_array_equal(table[t % 8] * powers[t % 4] + 8, got[0])
        np.testing.assert_array_equal(function(t), got[1])


def test_a_global_variable_keeps_what_the_last_launch_stored(device):
    loaded = device.load(objects.hip(GLOBALS))
    run(device, loaded["store"], (1, 1, 1), (8, 1, 1), np.zeros(1, np.int32), 100)
    got = run(device, loaded["store"], (1, 1, 1), (1, 1, 1), np.zeros(1, np.int32), 7)
    assert got[0] == 105
    again = device.load(objects.hip(GLOBALS))["store"]
    assert run(device, again, (1, 1, 1), (1, 1, 1), np.zeros(1, np.int32), 7)[0] == 2


CALLS = """
NOINLINE u32 ackermann(u32 m, u32 n) {
  if (!m) return n + 1;
  if (!n) return ackermann(m - 1, 1);
  return ackermann(m - 1, ackermann(m, n - 1));
}
NOINLINE void both(u32 a, u32 b, u32* sum, u32* product) { *sum = a + b; *product = a * b; }
KERNEL calls(u32* out) {
  u32 t = tid(), sum = 0, product = 0;
  if (t % 3) both(t, t + 1, &sum, &product);
  out[t] = ackermann(t % 3, t % 5) + 1000 * sum + 100000 * product;
}
"""


def ackermann(m: int, n: int) -> int:
    return (n + 1, n + 2, 2 * n + 3)[m]


@pytest.mark.parametrize("level", LEVELS)
def test_recursive_calls_diverge_and_return(device, level):
    kernel = device.load(objects.hip(CALLS, level))["calls"]
    got = run(device, kernel, (1, 1, 1), (100, 1, 1), np.zeros(100, np.uint32))
    ref = [
        ackermann(t % 3, t % 5) + (1000 * (2 * t + 1) + 100000 * t * (t + 1) if t % 3 else 0)
        for t in range(100)
    ]
    np.testing.assert_array_equal(ref, got)


SCRATCH = """
KERNEL scratch(u32* out, u32 n) {
  u32 line[24];
  u64 wide[5];
  unsigned char bytes[7];
  u32 t = tid();
  for (u32 i = 0; i < 24; i++) line[i] = i * i + t;
  for (u32 i = 0; i < 5; i++) wide[i] = (u64)line[(t + i) % 24] << 33;
  for (u32 i = 0; i < 7; i++) bytes[i] = t * i + n;
  for (u32 i = 0; i < n; i++) line[(t * 7 + i) % 24] ^= line[(t + 5 * i) % 24];
  out[t] = line[(t + n) % 24] + (u32)(wide[t % 5] >> 32) + bytes[(t + n) % 7];
}
"""


def scratch_of(t: int, n: int) -> int:
    line = [i * i + t for i in range(24)]
    wide = [line[(t + i) % 24] << 33 for i in range(5)]
    for i in range(n):
        line[(t * 7 + i) % 24] ^= line[(t + 5 * i) % 24]
    return line[(t + n) % 24] + (wide[t % 5] >> 32) + (t * ((t + n) % 7) + n) % 256


@pytest.mark.parametrize("level", LEVELS)
def test_every_lane_has_its_own_scratch(device, level):
    kernel = device.load(objects.hip(SCRATCH, level))["scratch"]
    got = run(device, kernel, (1, 1, 1), (130, 1, 1), np.zeros(130, np.uint32), 11)
    np.testing.assert_array_equal([scratch_of(t, 11) for t in range(130)], got)


DYNAMIC = """
extern SHARED int dynamic[];
KERNEL dynamic_lds(int* out, int n) {
  SHARED int fixed[64];
  u32 t = tid();
  fixed[t % 64] = t;
  dynamic[t] = 2 * t;
  barrier();
  out[t] = dynamic[n - 1 - t] + fixed[5];
}
"""


def test_dynamic_lds_lies_behind_the_static_part(device):
    kernel = device.load(objects.hip(DYNAMIC))["dynamic_lds"]
    out = np.zeros(60, np.int32)
    got = run(device, kernel, (1, 1, 1), (60, 1, 1), out, 60, dynamic_lds_bytes=240)
    np.testing.assert_array_equal(2 * np.arange(60)[::-1] + 5, got)


ATOMIC = """
KERNEL atomic(u32* out, const u32* in, int n) {
  u32 i = bid() * 256 + tid();
  if (i >= n) return;
  __atomic_fetch_add(&out[in[i] % 16], 1u, __ATOMIC_RELAXED);
  __atomic_fetch_max(&out[16], in[i], __ATOMIC_RELAXED);
  u32 old = out[17];
  while (!__atomic_compare_exchange_n(&out[17], &old, old + in[i], false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
}
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_workgroups_on_several_threads_meet_in_atomics(threads):
    device = EmulatedDevice(threads=threads)
    values = np.random.default_rng(1).integers(0, 2**32, 5000, np.uint32)
    kernel = device.load(objects.hip(ATOMIC))["atomic"]
    with buffers(device, values) as (data,):
        got = run(device, kernel, (20, 1, 1), (256, 1, 1), np.zeros(18, np.uint32), data, 5000)
    np.testing.assert_array_equal(np.bincount(values % 16, minlength=16), got[:16])
    assert got[16] == values.max()
    assert got[17] == values.sum(dtype=np.uint32)


def test_results_and_counts_do_not_depend_on_the_number_of_threads():
    values = np.random.default_rng(2).integers(0, 2**32, (7, 1024), np.uint32)
    outcomes = []
    for threads in (1, 2, 3):
        device = EmulatedDevice(threads=threads)
        kernel = device.load(objects.hip(TREE))["tree"]
        with buffers(device, values, np.zeros(7, np.uint64)) as (data, out):
            record = device.launch(kernel, (7, 1, 1), (1024, 1, 1), [out, data])
            outcomes.append((device.read(out, np.uint64, 7).tolist(), record))
    assert outcomes[0] == outcomes[1] == outcomes[2]


COUNTED = """
  s_load_dwordx2 s[2:3], s[0:1], 0x0
  v_and_b32 v1, 1023, v0
  s_mov_b32 s4, 5
  s_waitcnt lgkmcnt(0)
again:
  v_add_u32 v2, v1, v1
  v_lshlrev_b32 v3, 2, v1
  global_store_dword v3, v2, s[2:3]
  s_sub_u32 s4, s4, 1
  s_cmp_lg_u32 s4, 0
  s_cbranch_scc1 again
"""


def test_a_launch_counts_wave_instructions_by_class(device):
    kernel = device.load(objects.kernels(objects.kernel_text("counted", COUNTED)))["counted"]
    with buffers(device, np.zeros(256, np.int32)) as (out,):
        record = device.launch(kernel, (3, 1, 1), (256, 1, 1), [out])
    waves = 12
    each = {"smem": 1, "valu": 1 + 10, "salu": 1 + 10 + 1, "wait": 1, "vmem_store": 5, "branch": 5}
    assert record.executed == {name: waves * n for name, n in each.items()}
    assert (record.symbol, record.grid, record.block) == ("counted", (3, 1, 1), (256, 1, 1))


def test_objects_without_metadata_take_no_arguments_and_run(device):
    text = objects.kernel_text("bare", "  v_mov_b32 v1, 1", pointers=0)
    kernel = device.load(objects.kernels(text, with_metadata=False))["bare"]
    assert device.launch(kernel, (1, 1, 1), (64, 1, 1), []).executed["valu"] == 1


MANY_ARGUMENTS = """
KERNEL many(int* out, int a, const int* in, int b, int c, int d, int e, int f, int g, int h) {
  out[tid()] = a * in[tid()] + 3 * b + 5 * c + 7 * d + 11 * e + 13 * f + 17 * g + 19 * h;
}
"""


@pytest.mark.parametrize("count", [0, 3, 16])
def test_preloaded_arguments_are_in_registers_and_the_header_is_not_run(device, count):
    """The header traps: it is for firmware that cannot preload."""
    flags = "-O3", "-mllvm", f"-amdgpu-kernarg-preload-count={count}"
    kernel = device.load(objects.hip(MANY_ARGUMENTS, *flags))["many"]
    assert bool(kernel.descriptor.kernarg_preload) == bool(count)
    line = np.arange(64, dtype=np.int32)
    with buffers(device, line) as (given,):
        got = run(device, kernel, (1, 1, 1), (64, 1, 1), 0 * line, 2, given, *range(1, 8))
    np.testing.assert_array_equal(got, 2 * line + np.dot([3, 5, 7, 11, 13, 17, 19], range(1, 8)))
