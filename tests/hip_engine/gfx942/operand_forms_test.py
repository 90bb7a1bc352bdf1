"""DPP, SDWA, modifiers and constants: what an operand is before the opcode sees it."""

import itertools

import numpy as np
import pytest

from tests.hip_engine.gfx942 import vector_float_rows
from tests.hip_engine.gfx942.opcode_bench import LANES, execute, inputs, lane_bits, low_bits

LANE = np.arange(LANES)
ROW, WITHIN = LANE // 16 * 16, LANE % 16


def in_row(place):
    return np.where((place >= 0) & (place < 16), ROW + place, -1)


# Control -> the lane each lane reads, or -1.
CONTROLS = {
    "quad_perm:[1,0,3,2]": LANE // 4 * 4 + np.array([1, 0, 3, 2])[LANE % 4],
    "quad_perm:[3,3,0,1]": LANE // 4 * 4 + np.array([3, 3, 0, 1])[LANE % 4],
    "row_shl:1": in_row(WITHIN + 1),
    "row_shl:15": in_row(WITHIN + 15),
    "row_shr:1": in_row(WITHIN - 1),
    "row_shr:8": in_row(WITHIN - 8),
    "row_ror:1": in_row((WITHIN - 1) % 16),
    "row_ror:13": in_row((WITHIN - 13) % 16),
    "wave_shl:1": np.where(LANE < 63, LANE + 1, -1),
    "wave_rol:1": (LANE + 1) % 64,
    "wave_shr:1": LANE - 1,
    "wave_ror:1": (LANE - 1) % 64,
    "row_mirror": ROW + 15 - WITHIN,
    "row_half_mirror": LANE // 8 * 8 + 7 - LANE % 8,
    "row_bcast:15": np.where(LANE >= 16, ROW - 1, -1),
    "row_bcast:31": np.where(LANE >= 32, 31, -1),
    "row_newbcast:0": ROW,
    "row_newbcast:11": ROW + 11,
}
MASKS = ((15, 15, False), (15, 15, True), (10, 15, True), (15, 6, False), (5, 9, True))


def test_dpp_moves_source_0_and_masks_the_write(device):
    data = inputs(7, ("u32", "u32"))
    forms = list(itertools.product(CONTROLS.items(), MASKS))
    texts = [
        f"v_sub_u32_dpp v20, v10, v12 {name} row_mask:{rows:#x} bank_mask:{banks:#x}"
        + (" bound_ctrl:0" if zero else "")
        for (name, _), (rows, banks, zero) in forms
    ]
    active, old = lane_bits(data.exec), low_bits(data.lanes[:, 3].copy(), "u32")
    x, y = data.source(0, "u32"), data.source(1, "u32")
    for text, ((_, order), (rows, banks, zero)), got in zip(
        texts, forms, execute(device, texts, data), strict=True
    ):
        readable = (order >= 0) & active[:, order]
        enabled = (rows >> LANE // 16 & 1) & (banks >> LANE % 16 // 4 & 1) != 0
        written = active & enabled & (readable | zero)
        ref = np.where(written, np.where(readable, x[:, order], 0).astype(np.uint32) - y, old)
        np.testing.assert_array_equal(ref, low_bits(got.lanes.copy(), "u32"), err_msg=text)


def test_dpp_reads_before_it_writes(device):
    data = inputs(8, ("u32", "u32"))
    text = "v_mov_b32 v20, v10\n  v_mov_b32_dpp v20, v20 wave_rol:1"
    (got,) = execute(device, [text], data)
    active, old = lane_bits(data.exec), low_bits(data.lanes[:, 3].copy(), "u32")
    copied = np.where(active, data.source(0, "u32"), old)
    order = (LANE + 1) % 64
    ref = np.where(active & active[:, order], copied[:, order], copied)
    np.testing.assert_array_equal(ref, low_bits(got.lanes.copy(), "u32"))


def test_dpp_gives_no_carry_in_lanes_that_it_does_not_write(device):
    data = inputs(12, ("u32", "u32"))
    text = "v_add_co_u32_dpp v20, vcc, v10, v12 row_shr:3 row_mask:0xb bank_mask:0xd"
    (got,) = execute(device, [text], data)
    active, order = lane_bits(data.exec), CONTROLS["row_shr:1"] - 2
    order = np.where(WITHIN >= 3, order, -1)
    enabled = (0xB >> LANE // 16 & 1) & (0xD >> LANE % 16 // 4 & 1) != 0
    written = active & enabled & (order >= 0) & active[:, order]
    x, y = data.source(0, "u32")[:, order], data.source(1, "u32")
    ref = np.where(written, x + y, low_bits(data.lanes[:, 3].copy(), "u32"))
    np.testing.assert_array_equal(ref, low_bits(got.lanes.copy(), "u32"))
    np.testing.assert_array_equal(written & (x + y < x), lane_bits(got.mask))


def test_sdwa_selects_the_classes_of_a_class_test(device):
    data = inputs(13, ("f32", "u32"))
    forms = [f"src0_sel:DWORD src1_sel:{name}" for name in SELECTS]
    texts = [f"v_cmp_class_f32_sdwa vcc, v10, v12 {form}" for form in forms]
    x, wanted = data.source(0, "f32"), data.source(1, "u32")
    for name, got in zip(SELECTS, execute(device, texts, data), strict=True):
        classes = selected(wanted, name, False).astype(np.uint32)
        ref = vector_float_rows.classified(x, classes) & lane_bits(data.exec)
        np.testing.assert_array_equal(ref, lane_bits(got.mask), err_msg=name)


SELECTS = {
    "BYTE_0": (0, 8),
    "BYTE_1": (8, 8),
    "BYTE_2": (16, 8),
    "BYTE_3": (24, 8),
    "WORD_0": (0, 16),
    "WORD_1": (16, 16),
    "DWORD": (0, 32),
}
UNUSED = ("UNUSED_PAD", "UNUSED_SEXT", "UNUSED_PRESERVE")


def selected(x: np.ndarray, name: str, signed: bool) -> np.ndarray:
    shift, bits = SELECTS[name]
    part = x.astype(np.int64) >> shift & (1 << bits) - 1
    return np.where(signed & (part >> (bits - 1) == 1), part - (1 << bits), part)


def placed(value: np.ndarray, old: np.ndarray, name: str, unused: str) -> np.ndarray:
    shift, bits = SELECTS[name]
    part = value & (1 << bits) - 1
    if unused == "UNUSED_PRESERVE":
        return old & ~(((1 << bits) - 1) << shift) & 0xFFFFFFFF | part << shift
    if unused == "UNUSED_SEXT":
        part = np.where(part >> (bits - 1) == 1, part - (1 << bits), part)
    return part << shift & 0xFFFFFFFF


def test_sdwa_selects_parts_of_sources_and_destination(device):
    data = inputs(9, ("u32", "u32"))
    names = list(SELECTS)
    forms = [
        (
            names[i % 7],
            names[i // 7 % 7],
            names[(i * 3 + i // 7) % 7],
            UNUSED[i % 3],
            i % 2,
            i // 2 % 2,
        )
        for i in range(98)
    ]
    texts = [
        f"v_add_u32_sdwa v20, {'sext(v10)' if s0 else 'v10'}, {'sext(v12)' if s1 else 'v12'} "
        f"dst_sel:{dst} dst_unused:{unused} src0_sel:{a} src1_sel:{b}"
        for a, b, dst, unused, s0, s1 in forms
    ]
    active = lane_bits(data.exec)
    old = low_bits(data.lanes[:, 3].copy(), "u32").astype(np.int64)
    x, y = data.source(0, "u32"), data.source(1, "u32")
    for text, (a, b, dst, unused, s0, s1), got in zip(
        texts, forms, execute(device, texts, data), strict=True
    ):
        total = selected(x, a, bool(s0)) + selected(y, b, bool(s1))
        ref = np.where(active, placed(total, old, dst, unused), old)
        np.testing.assert_array_equal(ref, low_bits(got.lanes.copy(), "u32"), err_msg=text)


FLOAT_FORMS = {
    "v_add_f32_e64 v20, -v10, |v12|": lambda x, y: -x + np.abs(y),
    "v_mul_f32_e64 v20, -|v10|, v12": lambda x, y: -np.abs(x) * y,
    "v_add_f32_e64 v20, v10, v12 clamp": lambda x, y: clamped(x + y),
    "v_add_f32_e64 v20, v10, v12 mul:2": lambda x, y: (x + y) * np.float32(2),
    "v_add_f32_e64 v20, v10, v12 mul:4": lambda x, y: (x + y) * np.float32(4),
    "v_add_f32_e64 v20, v10, v12 div:2": lambda x, y: (x + y) * np.float32(0.5),
    "v_max_f32_e64 v20, v10, v10 clamp": lambda x, y: clamped(x),
    "v_mul_f32 v20, 4.0, v10": lambda x, y: np.float32(4) * x,
    "v_mul_f32 v20, 0.15915494, v10": lambda x, y: np.float32(0.15915494) * x,
    "v_add_f32 v20, 1, v10": lambda x, y: np.float32(1e-45) + x,
    "v_add_f32 v20, 0x42280000, v10": lambda x, y: np.float32(42) + x,
    "v_mul_f32 v20, s18, v10": None,
}


def clamped(x):
    return np.where(np.isnan(x), np.float32(0), np.clip(x, 0, 1)).astype(np.float32)


def test_modifiers_and_constants_of_floats(device):
    data = inputs(10, ("f32", "f32"))
    texts = list(FLOAT_FORMS)
    active, old = lane_bits(data.exec), low_bits(data.lanes[:, 3].copy(), "f32")
    scalar = low_bits(data.scalars[:, 1].copy(), "f32")[:, None]
    x, y = data.source(0, "f32"), data.source(1, "f32")
    for text, got in zip(texts, execute(device, texts, data), strict=True):
        with np.errstate(all="ignore"):
            value = FLOAT_FORMS[text](x, y) if FLOAT_FORMS[text] else scalar * x
        ref, lanes = np.where(active, value, old), low_bits(got.lanes.copy(), "f32")
        same = (ref.view(np.uint32) == lanes.view(np.uint32)) | np.isnan(ref) & np.isnan(lanes)
        assert same.all() or "clamp" in text and (ref == lanes)[~same].all(), text


PACKED_FORMS = {
    "v_pk_add_f16 v20, v10, 1.0 op_sel_hi:[1,0]": (1, 1),
    "v_pk_add_f16 v20, v10, 1.0": (1, 0),
    "v_pk_add_f16 v20, v10, -4.0 op_sel:[1,0] op_sel_hi:[0,0]": (-4, -4),
}


@pytest.mark.parametrize("text", PACKED_FORMS)
def test_a_packed_float_constant_is_a_half_below_a_zero(device, text):
    data = inputs(11, ("f16", "f16"))
    (got,) = execute(device, [text], data)
    x = data.source(0, "u32")
    low, high = (x.astype(np.uint16), (x >> 16).astype(np.uint16))
    if "op_sel:[1" in text:
        low, high = high, low
    active = lane_bits(data.exec)
    for half, constant, shift in (
        (low, PACKED_FORMS[text][0], 0),
        (high, PACKED_FORMS[text][1], 16),
    ):
        with np.errstate(all="ignore"):
            ref = half.view(np.float16) + np.float16(constant)
        lanes = low_bits(got.lanes >> np.uint64(shift), "f16")
        same = (ref.view(np.uint16) == lanes.view(np.uint16)) | np.isnan(ref) & np.isnan(lanes)
        assert same[active].all(), text
