"""Between LDS and memory without a register, and counters in LDS that a wave shares."""

import numpy as np
import pytest

from tests.hip_engine.gfx942.moves_test import DESCRIPTOR, LANE, RECORDS, with_offsets
from tests.hip_engine.gfx942.opcode_bench import GROUPS, LANES, execute, lane_bits, low_bits, pack

WIDTHS = {
    "ubyte": np.uint8,
    "sbyte": np.int8,
    "ushort": np.uint16,
    "sshort": np.int16,
    "dword": np.uint32,
}
SPACES = ("global", "scratch", "buffer")
# LDS from 0x410 on holds src3 of each lane; the load writes there; v20 reads it back.
FRAME = """s_mov_b64 s[30:31], exec
  s_mov_b64 exec, -1
  v_lshrrev_b32 v24, 1, v1
  ds_write_b32 v24, v16 offset:0x410
  {before}
  s_mov_b64 exec, s[30:31]
  s_movk_i32 m0, 0x400
  s_waitcnt lgkmcnt(0)
  {load}
  s_waitcnt vmcnt(0)
  s_mov_b64 exec, -1
  ds_read_b32 v20, v24 offset:0x410
  s_waitcnt lgkmcnt(0)"""
# Scratch holds eight bytes a lane of src1 at 16.
INTO_SCRATCH = "scratch_store_dwordx2 off, v[12:13], off offset:16\n  s_waitcnt vmcnt(0)"


def load_text(space: str, width: str) -> tuple[str, str]:
    if space == "buffer":
        return f"buffer_load_{width} v10, s[52:55], 0 offen offset:16 lds", DESCRIPTOR
    if space == "global":
        return f"global_load_lds_{width} v10, s[4:5] offset:16", ""
    return f"scratch_load_lds_{width} v10, off offset:16", INTO_SCRATCH


@pytest.mark.parametrize("space", SPACES)
def test_a_load_of_any_width_reaches_lds_as_a_dword(device, space):
    rng = np.random.default_rng(61)
    top = 7 if space == "scratch" else RECORDS - 8
    at = rng.integers(0, top // 4 + 1, (GROUPS, LANES)) * 4
    data = with_offsets(61, at)
    forms = [load_text(space, width) for width in WIDTHS]
    texts = [FRAME.format(load=load, before=before) for load, before in forms]
    raw = pack(data).view(np.uint8).reshape(GROUPS, -1)
    active, old = lane_bits(data.exec), low_bits(data.lanes[:, 3], "u32")
    outcomes = execute(device, texts, data, scratch=32)
    for (load, _), dtype, got in zip(forms, WIDTHS.values(), outcomes, strict=True):
        ref = old.copy()
        for group, lane in np.argwhere(active):
            if space == "scratch":
                source = data.lanes[group, 1, lane : lane + 1].view(np.uint8)
            else:
                source = raw[group, 16:]
            first = int(at[group, lane])
            size = np.dtype(dtype).itemsize
            if space == "buffer" and 16 + first + size > RECORDS:
                ref[group, lane] = 0
                continue
            value = source[first : first + size].view(dtype)[0]
            ref[group, lane] = np.array(int(value) & 0xFFFFFFFF, np.uint32)
        np.testing.assert_array_equal(ref, low_bits(got.lanes, "u32"), err_msg=load)


def test_addresses_by_lane_start_at_m0(device):
    text = """s_mov_b64 s[30:31], exec
  s_mov_b64 exec, -1
  v_lshrrev_b32 v24, 1, v1
  ds_write_b32 v24, v12 offset:0x440
  s_mov_b64 exec, s[30:31]
  s_movk_i32 m0, 0x400
  s_waitcnt lgkmcnt(0)
  ds_write_addtid_b32 v10 offset:0x40
  s_mov_b64 exec, -1
  s_movk_i32 m0, 0x430
  s_waitcnt lgkmcnt(0)
  ds_read_addtid_b32 v20 offset:0x10
  s_waitcnt lgkmcnt(0)"""
    data = with_offsets(62, np.arange(GROUPS * LANES).reshape(GROUPS, LANES))
    (got,) = execute(device, [text], data)
    ref = np.where(lane_bits(data.exec), data.source(0, "u32"), data.source(1, "u32"))
    np.testing.assert_array_equal(ref, low_bits(got.lanes, "u32"))


@pytest.mark.parametrize(("opcode", "sign"), [("ds_append", 1), ("ds_consume", -1)])
def test_a_counter_moves_by_the_active_lanes(device, opcode, sign):
    text = f"""s_mov_b64 s[30:31], exec
  s_mov_b64 exec, -1
  v_mov_b32 v25, 0
  v_mov_b32 v26, 7
  ds_write_b32 v25, v26 offset:0x404
  s_mov_b64 exec, s[30:31]
  s_movk_i32 m0, 0x400
  s_waitcnt lgkmcnt(0)
  {opcode} v20 offset:4
  s_mov_b64 exec, -1
  ds_read_b32 v27, v25 offset:0x404
  s_waitcnt lgkmcnt(0)
  v_readlane_b32 s24, v27, 5
  s_mov_b64 exec, s[30:31]"""
    data = with_offsets(63, np.zeros((GROUPS, LANES)))
    (got,) = execute(device, [text], data)
    active = lane_bits(data.exec)
    ref = np.where(active, 7, low_bits(data.lanes[:, 3], "u32"))
    np.testing.assert_array_equal(ref, low_bits(got.lanes, "u32"))
    count = (7 + sign * active.sum(1)).astype(np.uint32)
    np.testing.assert_array_equal(count, got.scalar.astype(np.uint32))


def test_a_store_from_lds_writes_the_buffer(device):
    text = f"""{DESCRIPTOR}  s_mov_b32 s52, s6
  s_and_b32 s53, s7, 0xffff
  s_mov_b64 s[30:31], exec
  s_mov_b64 exec, -1
  v_lshrrev_b32 v24, 1, v1
  ds_write_b32 v24, v12 offset:0x404
  v_mov_b32 v26, 0
  v_mov_b32 v27, 0
  global_store_dwordx2 v1, v[26:27], s[6:7]
  s_mov_b64 exec, s[30:31]
  s_movk_i32 m0, 0x400
  s_waitcnt vmcnt(0) lgkmcnt(0)
  v_lshlrev_b32 v10, 3, v10
  buffer_store_lds_dword s[52:55], 0 offset:4 lds
  s_waitcnt vmcnt(0)
  s_mov_b64 exec, -1
  global_load_dwordx2 v[20:21], v1, s[6:7]
  s_waitcnt vmcnt(0)
  s_mov_b64 exec, s[30:31]"""
    data = with_offsets(64, np.tile(LANE, (GROUPS, 1)))
    (got,) = execute(device, [text], data)
    active, x = lane_bits(data.exec), data.source(1, "u32")
    for group in range(GROUPS):
        last = np.flatnonzero(active[group])
        written = int(got.lanes[group, 0] >> np.uint64(32))
        assert written == (x[group, last[-1]] if len(last) else 0)
