"""Typed (format) buffer loads and stores: every format that is not refused, whole and half."""

import numpy as np
import pytest

from hip_engine.errors import DeviceFault
from tests.hip_engine.gfx942.moves_test import DESCRIPTOR, RECORDS, with_offsets
from tests.hip_engine.gfx942.opcode_bench import (
    GROUPS,
    LANES,
    execute,
    inputs,
    lane_bits,
    low_bits,
    pack,
)

# Data format -> (number in a descriptor, bits of a component, components).
LAYOUTS = {
    "8": (1, 8, 1),
    "16": (2, 16, 1),
    "8_8": (3, 8, 2),
    "32": (4, 32, 1),
    "16_16": (5, 16, 2),
    "8_8_8_8": (10, 8, 4),
    "32_32": (11, 32, 2),
    "16_16_16_16": (12, 16, 4),
    "32_32_32": (13, 32, 3),
    "32_32_32_32": (14, 32, 4),
}
NUMBERS = {"UNORM": 0, "SNORM": 1, "USCALED": 2, "SSCALED": 3, "UINT": 4, "SINT": 5, "FLOAT": 7}
COMPONENTS = ("x", "xy", "xyz", "xyzw")


def allowed(bits: int, number: str) -> bool:
    return bits != 8 if number == "FLOAT" else bits < 32 or number in ("UINT", "SINT")


PAIRS = [(d, n) for d in LAYOUTS for n in NUMBERS if allowed(LAYOUTS[d][1], n)]


def dtype_of(bits: int, number: str):
    letter = {"FLOAT": "f", "SNORM": "i", "SSCALED": "i", "SINT": "i"}.get(number, "u")
    return np.dtype(f"{letter}{bits // 8}")


def register_value(raw: np.ndarray, bits: int, number: str, half: bool) -> np.ndarray:
    """Components in memory as the dwords (or halves) a register gets."""
    x = raw.view(dtype_of(bits, number))
    if number in ("UINT", "SINT"):
        return x.astype(np.int64).astype(np.uint16 if half else np.uint32)
    most = float(np.iinfo(x.dtype).max) if number != "FLOAT" else 1.0
    with np.errstate(all="ignore"):
        value = x.astype(np.float32)
        if number in ("UNORM", "SNORM"):
            value = np.maximum(x.astype(np.float64) / most, -1.0).astype(np.float32)
        if half:
            return (x if x.dtype == np.float16 else value.astype(np.float16)).view(np.uint16)
    return value.view(np.uint32)


def memory_value(given: np.ndarray, bits: int, number: str, half: bool) -> np.ndarray:
    """Dwords (or halves) of registers as components in memory."""
    dtype = dtype_of(bits, number)
    if number in ("UINT", "SINT"):
        wide = given.view(np.int16 if half and number == "SINT" else given.dtype).astype(np.int64)
        return wide.astype(np.dtype(f"u{bits // 8}"))
    with np.errstate(all="ignore"):
        x = given.view(np.float16 if half else np.float32)
        if number == "FLOAT":
            return x.astype(dtype).view(f"u{bits // 8}")
        info = np.iinfo(dtype)
        scale, least = (info.max, -info.max) if number[1:] == "NORM" else (1, info.min)
        value = np.rint(np.nan_to_num(x.astype(np.float64), nan=0.0) * scale)
        low = 0 if dtype.kind == "u" else least
        return np.clip(value, low, info.max).astype(dtype).view(f"u{bits // 8}")


def one(number: str, half: bool) -> int:
    if number in ("UINT", "SINT"):
        return 1
    return 0x3C00 if half else 0x3F800000


def text_of(what: str, data: str, number: str, count: int, half: bool, own: bool) -> str:
    """`own`: the instruction says the format; else the descriptor does, choosing w for x."""
    d16 = "d16_" if half else ""
    registers = (count + 1) // 2 if half else count
    target = f"v[36:{35 + registers}]" if registers > 1 else "v36"
    if own:
        form = f"format:[BUF_DATA_FORMAT_{data},BUF_NUM_FORMAT_{number}]"
        opcode = f"tbuffer_{what}_format_{d16}{COMPONENTS[count - 1]}"
        return f"{opcode} {target}, v10, s[52:55], 0 {form} offen"
    return (
        f"s_mov_b32 s55, {choice(data, number)}\n  "
        f"buffer_{what}_format_{d16}{COMPONENTS[count - 1]} {target}, v10, s[52:55], 0 offen"
    )


SELECT = (7, 4, 0, 1)  # w, x, the constants 0 and 1


def choice(data: str, number: str) -> int:
    selected = sum(code << 3 * i for i, code in enumerate(SELECT))
    return selected | NUMBERS[number] << 12 | LAYOUTS[data][0] << 15


def halves_read(load: str) -> list[str]:
    """Two texts that leave dwords 0, 1 and dwords 2, 3 of a load over a pattern in v[20:21]."""
    fill = "".join(f"v_mov_b32 v{36 + i}, 0x77{i}\n  " for i in range(4))
    return [
        f"{DESCRIPTOR}  {fill}{load}\n  s_waitcnt vmcnt(0)\n  v_mov_b32 v20, v{first}\n"
        f"  v_mov_b32 v21, v{first + 1}"
        for first in (36, 38)
    ]


def loaded(data, name, number, count, half, own, at):
    """Dwords [GROUPS, LANES, 4] after the load."""
    _, bits, present = LAYOUTS[name]
    size = present * bits // 8
    raw = pack(data).view(np.uint8).reshape(GROUPS, -1)
    out = np.broadcast_to(np.uint32(0x770) + np.arange(4, dtype=np.uint32), (GROUPS, LANES, 4))
    out = out.copy()
    halves = out.view(np.uint16)
    for group, lane in np.ndindex(GROUPS, LANES):
        first = int(at[group, lane])
        inside = first + size <= RECORDS
        element = raw[group, first : first + size].view(f"u{bits // 8}")
        there = list(register_value(element, bits, number, half)) if inside else [0] * 4
        full = (there + [0, 0, one(number, half)][len(there) - 1 :])[:4] if inside else there
        if not own and inside:
            full = [full[3], full[0], 0, one(number, half)]
        target = halves if half else out
        target[group, lane, :count] = full[:count]
    return out


@pytest.mark.parametrize("half", [False, True], ids=["whole", "half"])
@pytest.mark.parametrize("own", [True, False], ids=["tbuffer", "buffer"])
def test_typed_loads_convert_every_component(device, own, half):
    rng = np.random.default_rng(71)
    at = rng.integers(0, RECORDS // 4 + 2, (GROUPS, LANES)) * 4
    data = with_offsets(71, at)
    cases = [(d, n, 1 + (i + shift) % 4) for i, (d, n) in enumerate(PAIRS) for shift in (0, 2)]
    texts = [t for d, n, c in cases for t in halves_read(text_of("load", d, n, c, half, own))]
    outcomes = execute(device, texts, data)
    active, old = lane_bits(data.exec)[..., None], data.lanes[:, 3]
    for i, (d, n, count) in enumerate(cases):
        ref = loaded(data, d, n, count, half, own, at)
        got = np.stack([o.lanes for o in outcomes[2 * i : 2 * i + 2]], 2).view(np.uint32)
        before = np.stack([old, old], 2).view(np.uint32)
        same = (np.where(active, ref, before) == got) | both_nan(ref, got, n, half)
        assert same.all(), (d, n, count, np.argwhere(~same)[0], ref[~same][0], got[~same][0])


def both_nan(ref, got, number, half):
    """A conversion between float widths need not keep a NaN's bits."""
    if number != "FLOAT":
        return np.zeros(ref.shape, bool)
    if not half:
        return np.isnan(ref.view(np.float32)) & np.isnan(got.view(np.float32))
    pairs = [x.view(np.float16).reshape(*x.shape, 2) for x in (ref, np.ascontiguousarray(got))]
    bits = [x.view(np.uint16) for x in pairs]
    return ((bits[0] == bits[1]) | np.isnan(pairs[0]) & np.isnan(pairs[1])).all(-1)


def test_the_high_half_alone_is_loaded_and_stored(device):
    data = with_offsets(72, np.full((GROUPS, LANES), 8))
    form = f"s_mov_b32 s55, {choice('16', 'UINT') & ~0xFFF | 4}\n  "
    texts = [
        f"{DESCRIPTOR}  {form}buffer_load_format_d16_hi_x v20, v10, s[52:55], 0 offen\n"
        "  s_waitcnt vmcnt(0)",
        f"{INTO_RESULTS}  {form}v_lshlrev_b32 v10, 3, v40\n  "
        "buffer_store_format_d16_hi_x v12, v10, s[52:55], 0 offen\n  s_waitcnt vmcnt(0)\n"
        "  global_load_ushort v20, v1, s[6:7]\n  s_waitcnt vmcnt(0)",
    ]
    first, second = execute(device, texts, data)
    active, old = lane_bits(data.exec), low_bits(data.lanes[:, 3], "u32")
    raw = pack(data).view(np.uint16).reshape(GROUPS, -1)[:, 4:5].astype(np.uint32)
    ref = np.where(active, old & np.uint32(0xFFFF) | raw << np.uint32(16), old)
    np.testing.assert_array_equal(ref, low_bits(first.lanes, "u32"))
    ref = np.where(active, data.source(1, "u32") >> np.uint32(16), old)
    np.testing.assert_array_equal(ref, low_bits(second.lanes, "u32"))


# The descriptor of the results of this instruction, and the lane's number in v40.
INTO_RESULTS = f"""{DESCRIPTOR}  s_mov_b32 s52, s6
  s_and_b32 s53, s7, 0xffff
  s_movk_i32 s54, 0x400
  v_lshrrev_b32 v40, 3, v1
"""


def stored(store: str) -> list[str]:
    """Two texts: the store to 16 bytes of the lane's own over a pattern, and half of them back."""
    return [
        f"""{INTO_RESULTS}  v_lshlrev_b32 v41, 4, v40
  v_mov_b32 v42, 0x55
  v_mov_b32 v43, v42
  v_mov_b32 v44, v42
  v_mov_b32 v45, v42
  global_store_dwordx4 v41, v[42:45], s[6:7]
  v_mov_b32 v36, v10
  v_mov_b32 v37, v12
  v_mov_b32 v38, v14
  v_mov_b32 v39, v16
  v_mov_b32 v10, v41
  s_waitcnt vmcnt(0)
  {store}
  v_mov_b32 v10, v36
  s_waitcnt vmcnt(0)
  global_load_dwordx2 v[20:21], v41, s[6:7] offset:{8 * part}
  s_waitcnt vmcnt(0)"""
        for part in (0, 1)
    ]


@pytest.mark.parametrize("half", [False, True], ids=["whole", "half"])
@pytest.mark.parametrize("own", [True, False], ids=["tbuffer", "buffer"])
def test_typed_stores_convert_every_component(device, own, half):
    kinds = ("f16",) * 4 if half else ("f32",) * 4
    for seed, numbers in ((73, [n for n in NUMBERS if n[1:] != "INT"]), (74, ["UINT", "SINT"])):
        data = inputs(seed, kinds if seed == 73 else ("u32",) * 4)
        chosen = [(d, n) for d, n in PAIRS if n in numbers]
        cases = [(d, n, c) for d, n in chosen for c in sorted({LAYOUTS[d][2], 4})]
        texts = [t for d, n, c in cases for t in stored(text_of("store", d, n, c, half, own))]
        outcomes = execute(device, texts, data)
        given = np.stack([low_bits(data.lanes[:, i], "u32") for i in range(4)], 2)
        source = given.view(np.uint16) if half else given
        before = np.stack([data.lanes[:, 3]] * 2, 2).view(np.uint32)
        active = lane_bits(data.exec)[..., None]
        for i, (d, n, _) in enumerate(cases):
            _, bits, present = LAYOUTS[d]
            ref = np.full((GROUPS, LANES, 4), 0x55, np.uint32)
            made = memory_value(np.ascontiguousarray(source[..., :present]), bits, n, half)
            ref.view(f"u{bits // 8}")[..., :present] = made
            got = np.stack([o.lanes for o in outcomes[2 * i : 2 * i + 2]], 2).view(np.uint32)
            same = (np.where(active, ref, before) == got) | both_nan(ref, got, n, bits == 16)
            assert same.all(), (d, n, np.argwhere(~same)[0], ref[~same][0], got[~same][0])


@pytest.mark.parametrize(
    "text",
    [
        "tbuffer_load_format_x v20, v10, s[52:55], 0 "
        "format:[BUF_DATA_FORMAT_10_11_11,BUF_NUM_FORMAT_FLOAT] offen",
        "tbuffer_store_format_x v20, v10, s[52:55], 0 "
        "format:[BUF_DATA_FORMAT_8_8,BUF_NUM_FORMAT_UINT] offen",
    ],
)
def test_a_format_that_is_refused_is_named(device, text):
    with pytest.raises(DeviceFault, match="buffer format that is refused"):
        execute(device, [f"{DESCRIPTOR}  {text}"], with_offsets(75, np.zeros((GROUPS, LANES))))
