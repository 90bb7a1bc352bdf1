"""Every memory opcode of the table against its byte-by-byte statement, under partial EXEC."""

import numpy as np
import pytest

from tests.hip_engine.gfx942 import objects
from tests.hip_engine.gfx942.memory_table import RECORDS, ROWS, SIZE, Row

GROUPS, LANES = 3, 64
BATCH = 24
PRIVATE = 64  # bytes of scratch a lane

START = """
  s_load_dwordx4 s[4:7], s[0:1], 0x0
  s_load_dwordx2 s[8:9], s[0:1], 0x10
  s_lshl_b32 s3, s2, 12
  s_waitcnt lgkmcnt(0)
  s_add_u32 s4, s4, s3
  s_addc_u32 s5, s5, 0
  s_add_u32 s6, s6, s3
  s_addc_u32 s7, s7, 0
  s_lshl_b32 s3, s2, 10
  s_add_u32 s8, s8, s3
  s_addc_u32 s9, s9, 0
  s_load_dwordx2 s[10:11], s[4:5], 0xa00
  s_mov_b32 s12, s6
  s_and_b32 s13, s7, 0xffff
  s_mov_b32 s14, {records}
  s_mov_b32 s15, 0x27000
  v_and_b32 v0, 63, v0
  v_lshlrev_b32 v1, 2, v0
  v_lshlrev_b32 v2, 4, v0
  v_lshlrev_b32 v14, 6, v0
  global_load_dword v3, v1, s[4:5]
  global_load_dwordx4 v[4:7], v2, s[4:5] offset:256
  global_load_dwordx4 v[8:11], v2, s[4:5] offset:1280
  s_waitcnt vmcnt(0) lgkmcnt(0)
  v_mov_b32 v13, s7
  v_add_co_u32 v12, vcc, s6, v3
  v_addc_co_u32 v13, vcc, 0, v13, vcc
"""
COPY = "global_{what}_dwordx4 {before}v14, {after}s[6:7] offset:{at}"


def copies(space: str, inward: bool) -> str:
    """The lane's 64 bytes of the pool, to or from LDS or scratch."""
    lines = []
    for at in range(0, PRIVATE, 16):
        near = {
            ("ds_", True): f"ds_write_b128 v14, v[16:19] offset:{at}",
            ("ds_", False): f"ds_read_b128 v[16:19], v14 offset:{at}",
            ("scratch_", True): f"scratch_store_dwordx4 off, v[16:19], off offset:{at}",
            ("scratch_", False): f"scratch_load_dwordx4 v[16:19], off, off offset:{at}",
        }[space, inward]
        far = (
            f"global_load_dwordx4 v[16:19], v14, s[6:7] offset:{at}"
            if inward
            else f"global_store_dwordx4 v14, v[16:19], s[6:7] offset:{at}"
        )
        lines += [far, near] if inward else [near, far]
        lines.insert(-1, "s_waitcnt vmcnt(0) lgkmcnt(0)")
    return "\n  ".join(lines)


def near_space(row: Row) -> str | None:
    return next((s for s in ("ds_", "scratch_") if row.opcode.startswith(s)), None)


def kernel(number: int, row: Row) -> tuple[str, str]:
    near = near_space(row)
    body = START.format(records=RECORDS)
    if near:
        body += f"  {copies(near, True)}\n  s_waitcnt vmcnt(0) lgkmcnt(0)\n"
    body += f"  s_mov_b64 exec, s[10:11]\n  {row.text}\n  s_waitcnt vmcnt(0) lgkmcnt(0)\n"
    body += "  s_mov_b64 exec, -1\n"
    if near:
        body += f"  {copies(near, False)}\n"
    body += "  global_store_dwordx4 v2, v[8:11], s[8:9]\n"
    scratch = PRIVATE if near == "scratch_" else 0
    return objects.kernel_text(f"k{number}", body, pointers=3, lds=SIZE, scratch=scratch)


def random_pool(rng, floats: str | None, shape) -> np.ndarray:
    """Bytes; plain numbers where the opcode adds floats, so that no NaN pattern is compared."""
    dwords = rng.integers(0, 2**32, shape, np.uint32)
    if floats is None:
        small = rng.integers(0, 2, shape).astype(bool)
        return np.where(small, dwords % np.uint32(5), dwords)
    count = int(np.prod(shape))
    if floats.startswith("few"):
        dtype = np.dtype(floats.removeprefix("few "))
        info = np.finfo(dtype)
        pool = [0.0, -0.0, 1.5, -1.5, np.inf, -np.inf, info.tiny / 4, -info.tiny / 8, np.nan]
        return (
            rng.choice(np.array(pool, dtype), 4 * count // dtype.itemsize)
            .view(np.uint32)
            .reshape(shape)
        )
    values = {
        "f32": lambda: rng.standard_normal(count).astype(np.float32),
        "f64": lambda: rng.standard_normal(count // 2),
        "f16": lambda: rng.standard_normal(2 * count).astype(np.float16),
        "bf16": lambda: (
            rng.standard_normal(2 * count).astype(np.float32).view(np.uint32) >> 16
        ).astype(np.uint16),
    }[floats]()
    return values.view(np.uint32).reshape(shape)


class Inputs:
    """Offsets, data, destinations, EXEC and memory of every group, as arrays."""

    def __init__(self, row: Row, seed: int):
        rng = np.random.default_rng([seed, 5])
        top = PRIVATE - 48 if near_space(row) == "scratch_" else 2900
        step = 16 if row.opcode.startswith(("buffer_", "scratch_")) else 8
        self.offsets = (rng.integers(0, top // step, (GROUPS, LANES)) * step).astype(np.uint32)
        if "atomic" in row.text or "rtn" in row.opcode:
            self.offsets[1] = rng.choice([0, 8, 16], LANES)  # lanes meet
        if "cmps" in row.opcode:
            self.offsets %= np.uint32(64)
        if row.text.startswith("v_mov"):
            self.offsets %= np.uint32(1024)  # what an atomic out of range returns is not said
        if (
            "write2" in row.opcode or "wrxchg2" in row.opcode
        ):  # which of two colliding lanes wins is not said
            element = 4 * (1 + ("b64" in row.opcode))
            stride = element if "st64" in row.opcode else 4 * element
            self.offsets = stride * rng.permuted(np.tile(np.arange(LANES), (GROUPS, 1)), axis=1)
            self.offsets = self.offsets.astype(np.uint32)
        self.data = random_pool(rng, row.floats, (GROUPS, LANES, 4))
        self.old = rng.integers(0, 2**32, (GROUPS, LANES, 4), np.uint32)
        self.exec = rng.integers(0, 2**64, GROUPS, np.uint64)
        self.exec[0] = 2**64 - 1
        self.pool = random_pool(rng, row.floats, (GROUPS, SIZE // 4))

    def packed(self) -> np.ndarray:
        raw = np.zeros((GROUPS, SIZE), np.uint8)
        raw[:, :256] = self.offsets.view(np.uint8)
        raw[:, 256:1280] = self.data.reshape(GROUPS, -1).view(np.uint8)
        raw[:, 1280:2304] = self.old.reshape(GROUPS, -1).view(np.uint8)
        raw[:, 2560:2568] = self.exec.view(np.uint8).reshape(GROUPS, 8)
        return raw


def expected(row: Row, data: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """(memory, destinations) after the lanes of EXEC in ascending order."""
    out, memories = data.old.copy(), []
    size = access_bytes(row)
    for group in range(GROUPS):
        memory = bytearray(data.pool[group].tobytes())
        before = bytes(memory)
        for lane in range(LANES):
            if not int(data.exec[group]) >> lane & 1:
                continue
            at = int(data.offsets[group, lane]) + row.offset
            if near_space(row) == "scratch_":
                at += PRIVATE * lane
            if row.opcode.startswith("buffer_") and at + size > RECORDS:
                got = [0] * max(1, size // 4) if "load" in row.opcode else None
                if got and "d16" in row.opcode:
                    got = row.function(bytearray(SIZE), 0, None, data.old[group, lane].tolist())
            else:
                old = data.old[group, lane].tolist()
                values = data.data[group, lane].tolist()
                got = row.function(memory, at, values, old)
            if got is not None:
                out[group, lane, : len(got)] = got
        assert "load" not in row.opcode or bytes(memory) == before
        memories.append(np.frombuffer(bytes(memory), np.uint32))
    return np.stack(memories), out


def access_bytes(row: Row) -> int:
    for word, size in (("x4", 16), ("x3", 12), ("x2", 8), ("dword", 4), ("short", 2), ("byte", 1)):
        if word in row.opcode:
            return size
    return 4


def run(device, entry, data: Inputs) -> tuple[np.ndarray, np.ndarray]:
    arrays = (data.packed(), data.pool, data.old)
    buffers = [device.allocate(a.nbytes, f"array {i}") for i, a in enumerate(arrays)]
    try:
        for buffer, array in zip(buffers, arrays, strict=True):
            device.write(buffer, array)
        device.launch(entry, (GROUPS, 1, 1), (LANES, 1, 1), buffers)
        return tuple(
            device.read(b, np.uint32, a.size).reshape(a.shape)
            for b, a in zip(buffers[1:], arrays[1:], strict=True)
        )
    finally:
        for buffer in buffers:
            device.free(buffer)


@pytest.mark.parametrize("first", range(0, len(ROWS), BATCH))
def test_memory_opcodes_do_what_the_manual_says(device, first):
    members = ROWS[first : first + BATCH]
    loaded = device.load(objects.kernels(*(kernel(i, row) for i, row in enumerate(members))))
    failures = []
    for number, row in enumerate(members):
        data = Inputs(row, first + number)
        ref = expected(row, data)
        got = run(device, loaded[f"k{number}"], data)
        for what, x, y in zip(("memory", "destination"), ref, got, strict=True):
            if (x != y).any():
                at = tuple(np.argwhere(x != y)[0])
                failures.append(
                    f"{row.text} ({row.meaning}): {what} at {[int(i) for i in at]}: expected "
                    f"{int(x[at]):#x}, got {int(y[at]):#x}; {(x != y).sum()} dwords differ"
                )
    assert not failures, "\n".join(failures)
