"""Scalar loads, pushes across lanes, loads straight to LDS, calls, and what has no effect."""

import dataclasses

import numpy as np
import pytest

from hip_engine.errors import DeviceFault, UnsupportedInstruction
from hip_engine.gfx942.translate import NEVER_TAKEN
from tests.hip_engine.gfx942 import objects
from tests.hip_engine.gfx942.opcode_bench import (
    GROUPS,
    LANES,
    execute,
    inputs,
    lane_bits,
    low_bits,
    pack,
)

LANE = np.arange(LANES)
RECORDS = 0x140
DESCRIPTOR = f"""s_mov_b32 s52, s4
  s_and_b32 s53, s5, 0xffff
  s_mov_b32 s54, {RECORDS}
  s_mov_b32 s55, 0x27000
"""
STRIDED = DESCRIPTOR + f"  s_or_b32 s53, s53, 0x80000\n  s_mov_b32 s54, {RECORDS // 8}\n"


def into_lanes(load: str, dwords: int) -> str:
    """The load, then its scalars s32 and on in the lanes of v20, EXEC or not."""
    moves = [f"v_writelane_b32 v20, s{32 + i}, {i}" for i in range(dwords)]
    return "\n  ".join([load, "s_waitcnt lgkmcnt(0)", *moves])


def scalars(dwords: int) -> str:
    return f"s[32:{31 + dwords}]" if dwords > 1 else "s32"


@pytest.mark.parametrize("dwords", [1, 2, 4, 8, 16])
def test_scalar_loads_read_consecutive_dwords_and_buffers_end_in_zeros(device, dwords):
    data, to = inputs(31, ("u32",)), scalars(dwords)
    name = f"dword{f'x{dwords}' if dwords > 1 else ''}"
    buffer = f"s_buffer_load_{name} {to}, s[52:55]"
    forms = {  # text -> (first byte, bytes that are there)
        f"s_load_{name} {to}, s[4:5], 0x64": (0x64, 4096),
        f"s_movk_i32 s30, 0x48\n  s_load_{name} {to}, s[4:5], s30": (0x48, 4096),
        f"{DESCRIPTOR}  {buffer}, 0x24": (0x24, RECORDS),
        f"{DESCRIPTOR}  {buffer}, 0x138": (0x138, RECORDS),
        f"{DESCRIPTOR}  s_movk_i32 s30, 0x13c\n  {buffer}, s30": (0x13C, RECORDS),
        f"{DESCRIPTOR}  {buffer}, 0x140": (0x140, RECORDS),
        f"{STRIDED}  {buffer}, 0x130": (0x130, RECORDS),
    }
    raw, old = pack(data).view(np.uint32), low_bits(data.lanes[:, 3], "u32")
    texts = [into_lanes(text, dwords) for text in forms]
    for (text, (at, end)), got in zip(forms.items(), execute(device, texts, data), strict=True):
        ref = old.copy()
        ref[:, :dwords] = raw[:, at // 4 : at // 4 + dwords]
        ref[:, :dwords][:, at + 4 * np.arange(dwords) >= end] = 0
        np.testing.assert_array_equal(ref, low_bits(got.lanes, "u32"), err_msg=text)


def with_offsets(seed: int, offsets: np.ndarray):
    data = inputs(seed, ("u32", "u32"))
    lanes = data.lanes.copy()
    lanes[:, 0] = offsets.astype(np.uint64)
    return dataclasses.replace(data, lanes=lanes)


@pytest.mark.parametrize("offset", [0, 12, 252])
def test_ds_permute_pushes_and_lanes_that_nobody_names_get_zero(device, offset):
    rng = np.random.default_rng(32)
    to = rng.permuted(np.tile(LANE, (GROUPS, 1)), axis=1)
    noise = rng.integers(0, 1000, to.shape) * 256 + rng.integers(0, 4, to.shape)
    data = with_offsets(32, 4 * to + noise)
    text = f"ds_permute_b32 v20, v10, v12 offset:{offset}\n  s_waitcnt lgkmcnt(0)"
    (got,) = execute(device, [text], data)
    active, x = lane_bits(data.exec), data.source(1, "u32")
    ref = low_bits(data.lanes[:, 3], "u32")
    for group in range(GROUPS):
        out = np.zeros(LANES, np.uint32)
        for lane in LANE[active[group]]:
            out[(to[group, lane] + (offset + noise[group, lane] % 4) // 4) % 64] = x[group, lane]
        ref[group, active[group]] = out[active[group]]
    np.testing.assert_array_equal(ref, low_bits(got.lanes, "u32"))


def test_ds_bpermute_pulls_and_inactive_lanes_give_zero(device):
    rng = np.random.default_rng(38)
    data = with_offsets(38, rng.integers(0, 2**32, (GROUPS, LANES)))
    text = "ds_bpermute_b32 v20, v10, v12 offset:8\n  s_waitcnt lgkmcnt(0)"
    (got,) = execute(device, [text], data)
    active, x = lane_bits(data.exec), data.source(1, "u32")
    place = ((data.source(0, "u32") + np.uint32(8)) // 4 % 64).astype(np.int64)
    pulled = np.where(
        np.take_along_axis(active, place, 1), np.take_along_axis(x, place, 1), 0
    ).astype(np.uint32)
    ref = np.where(active, pulled, low_bits(data.lanes[:, 3], "u32"))
    np.testing.assert_array_equal(ref, low_bits(got.lanes, "u32"))


TO_LDS = {
    "global_load_lds_dword v10, s[4:5] offset:16": "",
    "global_load_lds_dword v[26:27], off offset:16": """v_mov_b32 v27, s5
  v_add_co_u32 v26, vcc, s4, v10
  v_addc_co_u32 v27, vcc, 0, v27, vcc
""",
    "buffer_load_dword v10, s[52:55], 0 offen offset:16 lds": DESCRIPTOR,
}


def test_a_load_to_lds_puts_lane_i_at_m0_plus_offset_plus_4_i(device):
    rng = np.random.default_rng(33)
    data = with_offsets(33, 4 * rng.integers(0, 100, (GROUPS, LANES)))
    texts = [
        f"""s_mov_b64 s[30:31], exec
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
        for load, before in TO_LDS.items()
    ]
    raw, at = pack(data).view(np.uint32), data.source(0, "u32") // 4 + 4
    values = np.take_along_axis(raw, at.astype(np.int64), 1)
    active, old = lane_bits(data.exec), low_bits(data.lanes[:, 3], "u32")
    for load, got in zip(TO_LDS, execute(device, texts, data), strict=True):
        loaded = np.where(4 * at >= RECORDS, 0, values) if load.startswith("buffer") else values
        ref = np.where(active, loaded, old)
        np.testing.assert_array_equal(ref, low_bits(got.lanes, "u32"), err_msg=load)


def test_the_index_of_registers_may_change_while_indexing_is_on(device):
    text = """v_mov_b32 v32, v10
  v_mov_b32 v33, v12
  s_movk_i32 s30, 1
  s_mov_b32 s31, 0
  s_set_gpr_idx_on s30, gpr_idx(SRC0,DST)
  v_mov_b32 v19, v32
  s_set_gpr_idx_idx s31
  v_mov_b32 v21, v32
  s_set_gpr_idx_off
  v_add_u32 v20, v20, v21"""
    data = inputs(34, ("u32", "u32"))
    (got,) = execute(device, [text], data)
    x, y, active = data.source(0, "u32"), data.source(1, "u32"), lane_bits(data.exec)
    ref = np.where(active, x + y, low_bits(data.lanes[:, 3], "u32"))
    np.testing.assert_array_equal(ref, low_bits(got.lanes, "u32"))


def test_a_branch_through_registers_goes_where_it_points(device):
    """How LLVM branches where s_branch does not reach."""
    text = """s_getpc_b64 s[30:31]
  s_add_u32 s30, s30, 16
  s_addc_u32 s31, s31, 0
  s_setpc_b64 s[30:31]
  v_mov_b32 v10, 0
  v_mov_b32 v20, v10"""
    data = inputs(41, ("u32",))
    (got,) = execute(device, [text], data)
    ref = np.where(lane_bits(data.exec), data.source(0, "u32"), low_bits(data.lanes[:, 3], "u32"))
    np.testing.assert_array_equal(ref, low_bits(got.lanes, "u32"))


def test_a_call_returns_behind_itself(device):
    text = """s_call_b64 s[30:31], 1
  s_branch 2
  v_mov_b32 v20, v10
  s_setpc_b64 s[30:31]"""
    data = inputs(35, ("u32",))
    (got,) = execute(device, [text], data)
    ref = np.where(lane_bits(data.exec), data.source(0, "u32"), low_bits(data.lanes[:, 3], "u32"))
    np.testing.assert_array_equal(ref, low_bits(got.lanes, "u32"))


def test_the_operands_that_are_indexed_may_change_while_indexing_is_on(device):
    text = """v_mov_b32 v32, v10
  v_mov_b32 v33, v12
  s_movk_i32 s30, 1
  s_set_gpr_idx_on s30, gpr_idx(SRC0)
  v_mov_b32 v21, v32
  s_set_gpr_idx_mode gpr_idx(DST)
  v_mov_b32 v19, v32
  s_set_gpr_idx_off
  v_sub_u32 v20, v20, v21"""
    data = inputs(39, ("u32", "u32"))
    (got,) = execute(device, [text], data)
    x, y, active = data.source(0, "u32"), data.source(1, "u32"), lane_bits(data.exec)
    ref = np.where(active, x - y, low_bits(data.lanes[:, 3], "u32"))
    np.testing.assert_array_equal(ref, low_bits(got.lanes, "u32"))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("v_add_u32 v20, v32, v33\n s_set_gpr_idx_off", "anything but v_mov_b32"),
        ("v_mov_b32 v20, v32", "outlasts its block"),
    ],
)
def test_indexing_that_cannot_be_followed_is_refused(device, body, why):
    text = f"s_movk_i32 s30, 1\n s_set_gpr_idx_on s30, gpr_idx(SRC0)\n {body}\n"
    code = objects.kernels(objects.kernel_text("indexed", text, pointers=0))
    with pytest.raises(UnsupportedInstruction, match=why):
        device.load(code)["indexed"]


@pytest.mark.parametrize("move", ["v_mov_b32 v20, v32", "s_movrels_b32 s4, s20"])
def test_an_index_past_the_registers_is_a_fault(device, move):
    around = ("s_set_gpr_idx_on s30, gpr_idx(SRC0)", "s_set_gpr_idx_off")
    body = f"s_movk_i32 s30, 0xff\n s_mov_b32 m0, s30\n {around[0]}\n {move}\n {around[1]}"
    code = objects.kernels(objects.kernel_text("past", body, pointers=0))
    with pytest.raises(DeviceFault, match="register index past the end"):
        device.launch(device.load(code)["past"], (1, 1, 1), (64, 1, 1), [])


def test_an_index_that_no_lane_uses_does_no_harm(device):
    text = """s_mov_b64 exec, 0
  s_movk_i32 s30, 0xff
  s_set_gpr_idx_on s30, gpr_idx(SRC0,DST)
  v_mov_b32 v20, v32
  s_set_gpr_idx_off"""
    data = inputs(42, ("u32",))
    (got,) = execute(device, [text], data)
    np.testing.assert_array_equal(data.lanes[:, 3], got.lanes)


@pytest.mark.parametrize("branch", sorted(NEVER_TAKEN))
def test_debug_branches_are_never_taken(device, branch):
    text = f"{branch} 1\n  v_mov_b32 v20, v10"
    data = inputs(40, ("u32",))
    (got,) = execute(device, [text], data)
    ref = np.where(lane_bits(data.exec), data.source(0, "u32"), low_bits(data.lanes[:, 3], "u32"))
    np.testing.assert_array_equal(ref, low_bits(got.lanes, "u32"))


def test_clocks_go_forward(device):
    texts = [
        f"{clock} s[30:31]\n  s_branch 0\n  s_nop 0\n  {clock} s[32:33]\n  s_waitcnt lgkmcnt(0)\n"
        "  s_sub_u32 s24, s32, s30\n  s_subb_u32 s25, s33, s31"
        for clock in ("s_memtime", "s_memrealtime")
    ]
    for got in execute(device, texts, inputs(36, ("u32",))):
        assert (got.scalar > 0).all() and (got.scalar < 100).all()


def test_a_wave_that_ends_saved_does_nothing_more(device):
    body = """
  s_load_dwordx2 s[4:5], s[0:1], 0x0
  v_mov_b32 v1, 0
  v_mov_b32 v2, 7
  s_waitcnt lgkmcnt(0)
  global_store_dword v1, v2, s[4:5]
  s_endpgm_saved
  global_store_dword v1, v2, s[4:5] offset:4
"""
    entry = device.load(objects.kernels(objects.kernel_text("ends", body)))["ends"]
    out = device.allocate(8, "out")
    device.write(out, np.array([1, 2], np.uint32))
    device.launch(entry, (1, 1, 1), (64, 1, 1), [out])
    assert device.read(out, np.uint32, 2).tolist() == [7, 2]
    device.free(out)


NO_EFFECT = (
    *("s_nop 3", "s_waitcnt vmcnt(0) expcnt(0) lgkmcnt(0)", "s_sleep 2", "s_setprio 3"),
    *("s_sethalt 0", "s_icache_inv", "s_dcache_inv", "s_dcache_inv_vol", "s_dcache_wb"),
    *("s_dcache_wb_vol", "s_ttracedata", "s_incperflevel 1", "s_decperflevel 1", "s_wakeup"),
    *("s_sendmsg sendmsg(MSG_INTERRUPT)", "v_nop", "v_clrexcp", "ds_nop", "buffer_inv sc0 sc1"),
    *("s_atc_probe 1, s[4:5], 0x10", "s_atc_probe_buffer 1, s[4:7], 0x10"),
    *("buffer_wbl2 sc1", "buffer_wbinvl1", "buffer_wbinvl1_vol"),
)


def test_instructions_without_effect_leave_results_and_state_alone(device):
    data = inputs(37, ("u32", "u32"))
    texts = [
        f"s_mov_b32 m0, s18\n  v_add_u32 v20, v10, v12\n  {text}\n  v_xor_b32 v20, v20, v10\n"
        "  s_mov_b32 s24, m0"
        for text in NO_EFFECT
    ]
    x, y = data.source(0, "u32"), data.source(1, "u32")
    ref = np.where(lane_bits(data.exec), x + y ^ x, low_bits(data.lanes[:, 3], "u32"))
    for text, got in zip(NO_EFFECT, execute(device, texts, data), strict=True):
        np.testing.assert_array_equal(ref, low_bits(got.lanes, "u32"), err_msg=text)
        np.testing.assert_array_equal(got.lanes >> np.uint64(32), data.lanes[:, 3] >> np.uint64(32))
        np.testing.assert_array_equal(
            got.scalar.astype(np.uint32), data.scalars[:, 1].astype(np.uint32)
        )
        np.testing.assert_array_equal(got.scc != 0, data.scalars[:, 3] != 0, err_msg=text)
        np.testing.assert_array_equal(got.exec, data.exec, err_msg=text)
        np.testing.assert_array_equal(got.mask, data.vcc, err_msg=text)
