"""Scalar stores and atomics, from an address and through a buffer that ends."""

import numpy as np
import pytest

from tests.hip_engine.gfx942 import objects
from tests.hip_engine.gfx942.memory_table import COMBINE, MASK

DWORDS = 64
RECORDS = 0x60  # bytes of the buffer of the same memory
START = f"""
  s_load_dwordx4 s[4:7], s[0:1], 0x0
  s_waitcnt lgkmcnt(0)
  s_load_dwordx8 s[16:23], s[6:7], 0x0
  s_mov_b32 s52, s4
  s_and_b32 s53, s5, 0xffff
  s_mov_b32 s54, {RECORDS}
  s_mov_b32 s55, 0x27000
  s_movk_i32 s30, 0x14
  s_waitcnt lgkmcnt(0)
"""
END = """
  s_waitcnt lgkmcnt(0)
  v_mov_b32 v1, 0
"""
END += "".join(
    f"  v_mov_b32 v2, s{16 + i}\n  global_store_dword v1, v2, s[6:7] offset:{4 * i}\n"
    for i in range(8)
)
BASES = {"s_": "s[4:5]", "s_buffer_": "s[52:55]"}
OFFSETS = {"0x14": 0x14, "s30": 0x14, "0x5c": 0x5C, "0x60": 0x60}


def data_registers(dwords: int) -> str:
    return f"s[16:{15 + dwords}]" if dwords > 1 else "s16"


def cases():
    """(text, prefix, offset, dwords, name): stores have an empty name."""
    for prefix, base in BASES.items():
        for text, at in OFFSETS.items():
            for dwords in (1, 2, 4):
                suffix = f"dword{f'x{dwords}' if dwords > 1 else ''}"
                register = data_registers(dwords)
                yield f"{prefix}store_{suffix} {register}, {base}, {text}", prefix, at, dwords, ""
        for name in [*(n for n in COMBINE if n != "rsub"), "cmpswap"]:
            for dwords, suffix in ((1, ""), (2, "_x2")):
                for glc, text in (("", "0x18"), (" glc", "0x20"), (" glc", "0x60")):
                    register = data_registers(dwords * (1 + (name == "cmpswap")))
                    opcode = f"{prefix}atomic_{name}{suffix}"
                    where = int(text, 0)
                    whole = f"{opcode} {register}, {base}, {text}{glc}"
                    yield whole, prefix, where, dwords, name


CASES = list(cases())


def number(words) -> int:
    return int.from_bytes(np.ascontiguousarray(words).tobytes(), "little")


def expected(case, memory, data):
    """(memory, scalars) afterwards."""
    text, prefix, at, dwords, name = case
    memory, data = memory.copy(), data.copy()
    inside = prefix == "s_" or at + 4 * dwords <= RECORDS
    first = at // 4
    if not name:
        for i in range(dwords):
            if prefix == "s_" or at + 4 * i + 4 <= RECORDS:
                memory[first + i] = data[i]
        return memory, data
    old = memory[first : first + dwords].copy()
    if inside:
        given, before = number(data[:dwords]), number(old)
        if name == "cmpswap":
            after = given if before == number(data[dwords : 2 * dwords]) else before
        else:
            after = COMBINE[name](before, given, 4 * dwords) & MASK[4 * dwords]
        raw = np.frombuffer(after.to_bytes(4 * dwords, "little"), np.uint32)
        memory[first : first + dwords] = raw
    if "glc" in text:
        data[:dwords] = old if inside else 0
    return memory, data


@pytest.mark.parametrize("prefix", BASES)
def test_scalar_stores_and_atomics_do_what_the_manual_says(device, prefix):
    members = [case for case in CASES if case[1] == prefix]
    texts = [
        objects.kernel_text(f"k{i}", f"{START}  {case[0]}\n{END}", pointers=2)
        for i, case in enumerate(members)
    ]
    loaded = device.load(objects.kernels(*texts))
    rng = np.random.default_rng(51)
    buffers = [device.allocate(4 * n, name) for n, name in ((DWORDS, "memory"), (8, "data"))]
    for i, case in enumerate(members):
        memory = rng.integers(0, 2**32, DWORDS, np.uint32)
        data = rng.choice(np.array([0, 1, 5, 2**31, 2**32 - 1, *memory[:9]], np.uint32), 8)
        if rng.integers(0, 2):  # so that some comparisons hold
            data[case[3] : 2 * case[3]] = memory[case[2] // 4 : case[2] // 4 + case[3]]
        for buffer, values in zip(buffers, (memory, data), strict=True):
            device.write(buffer, values)
        device.launch(loaded[f"k{i}"], (1, 1, 1), (64, 1, 1), buffers)
        got = device.read(buffers[0], np.uint32, DWORDS), device.read(buffers[1], np.uint32, 8)
        for ref, out in zip(expected(case, memory, data), got, strict=True):
            np.testing.assert_array_equal(ref, out, err_msg=case[0])
    for buffer in buffers:
        device.free(buffer)


@pytest.mark.parametrize("bits", [32, 64])
def test_scalar_registers_move_by_index(device, bits):
    n = bits // 32
    wide = (lambda i: f"s[{i}:{i + 1}]") if n == 2 else (lambda i: f"s{i}")
    body = (
        START
        + f"""
  s_movk_i32 m0, 4
  s_movrels_b{bits} {wide(40)}, {wide(16)}
  s_movreld_b{bits} {wide(18)}, {wide(40)}
  s_waitcnt lgkmcnt(0)
{END}"""
    )
    entry = device.load(objects.kernels(objects.kernel_text("moves", body, pointers=2)))["moves"]
    memory, data = (device.allocate(4 * n, "x") for n in (DWORDS, 8))
    values = np.arange(100, 108, dtype=np.uint32)
    device.write(data, values)
    device.write(memory, np.zeros(DWORDS, np.uint32))
    device.launch(entry, (1, 1, 1), (64, 1, 1), [memory, data])
    ref = values.copy()
    ref[6 : 6 + n] = values[4 : 4 + n]
    np.testing.assert_array_equal(device.read(data, np.uint32, 8), ref)
    device.free(memory)
    device.free(data)
