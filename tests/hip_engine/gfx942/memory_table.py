"""Memory opcodes: text, and a byte-by-byte statement of what the ISA manual says they do.

Every lane has an offset v3 into 4 KiB (v[12:13] is the address), data v[4:7] and a destination
v[8:11]. A function takes (memory, at, data, active) and returns the destination's new dwords.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

SIZE = 4096
RECORDS = 2048  # of the buffer descriptor in s[12:15]


class Row(NamedTuple):
    opcode: str
    text: str
    function: Callable  # (bytearray, byte offset, 4 data dwords) -> dwords or None
    offset: int
    meaning: str
    floats: str | None = None


ROWS: list[Row] = []
MASK = {4: 2**32 - 1, 8: 2**64 - 1}


def registers(first: int, dwords: int) -> str:
    return f"v{first}" if dwords == 1 else f"v[{first}:{first + dwords - 1}]"


def spaces(opcode: str, target: str, data: str, offset: int):
    """(opcode, text) of the same access in every space; `target` and `data` may be empty."""
    before = f"{target}, " if target else ""
    after = f", {data}" if data else ""
    for sc0 in ("", " sc0") if "atomic" in opcode and target else ("",):
        if "atomic" in opcode and target and not sc0:
            continue
        at = f"offset:{offset}{sc0}"
        yield f"global_{opcode}", f"global_{opcode} {before}v[12:13]{after}, off {at}"
        yield f"global_{opcode}", f"global_{opcode} {before}v3{after}, s[6:7] {at}"
        yield f"flat_{opcode}", f"flat_{opcode} {before}v[12:13]{after} {at}"
        if "atomic" not in opcode:
            yield f"scratch_{opcode}", f"scratch_{opcode} {before}v3{after}, off {at}"
        held = target or data
        # With a result the data would be replaced; and this chip has no such atomic of bf16.
        if "atomic" not in opcode or not (target or "bf16" in opcode):
            yield f"buffer_{opcode}", f"buffer_{opcode} {held}, v3, s[12:15], 0 offen {at}"


def load(size: int, signed: bool, half: str | None):
    def function(memory, at, data, old):
        raw = bytes(memory[at : at + size])
        if size >= 4:
            return list(np.frombuffer(raw, np.uint32))
        value = int.from_bytes(raw, "little", signed=signed)
        if half == "low":
            return [old[0] & 0xFFFF0000 | value & 0xFFFF]
        if half == "high":
            return [old[0] & 0xFFFF | (value & 0xFFFF) << 16]
        return [value & MASK[4]]

    return function


def store(size: int, shift: int):
    def function(memory, at, data, old):
        raw = b"".join(int(d).to_bytes(4, "little") for d in data)
        if shift:
            raw = (int(data[0]) >> shift).to_bytes(4, "little")
        memory[at : at + size] = raw[:size]

    return function


LOADS = {
    "ubyte": (1, False, None),
    "sbyte": (1, True, None),
    "ushort": (2, False, None),
    "sshort": (2, True, None),
    "ubyte_d16": (1, False, "low"),
    "ubyte_d16_hi": (1, False, "high"),
    "sbyte_d16": (1, True, "low"),
    "sbyte_d16_hi": (1, True, "high"),
    "short_d16": (2, False, "low"),
    "short_d16_hi": (2, False, "high"),
    **{f"dword{f'x{n}' if n > 1 else ''}": (4 * n, False, None) for n in (1, 2, 3, 4)},
}
STORES = {
    "byte": (1, 0),
    "byte_d16_hi": (1, 16),
    "short": (2, 0),
    "short_d16_hi": (2, 16),
    **{f"dword{f'x{n}' if n > 1 else ''}": (4 * n, 0) for n in (1, 2, 3, 4)},
}
DS_NAMES = {
    "ubyte": "u8",
    "sbyte": "i8",
    "ushort": "u16",
    "sshort": "i16",
    "short": "u16",
    "dword": "b32",
    "dwordx2": "b64",
    "dwordx3": "b96",
    "dwordx4": "b128",
    "byte": "b8",
}


def ds_name(suffix: str, sized: str) -> str:
    head, _, tail = suffix.partition("_")
    name = "b16" if (head, sized) == ("short", "write") else DS_NAMES[head]
    return f"ds_{sized}_{name}{'_' + tail if tail else ''}"


for _suffix, _form in LOADS.items():
    _dwords = max(1, _form[0] // 4)
    _target = registers(8, _dwords)
    for _opcode, _text in spaces(f"load_{_suffix}", _target, "", 16):
        ROWS.append(Row(_opcode, _text, load(*_form), 16, f"{_form[0]} bytes from memory"))
    _name = ds_name(_suffix, "read")
    _text = f"{_name} {_target}, v3 offset:16"
    ROWS.append(Row(_name, _text, load(*_form), 16, f"{_form[0]} bytes from LDS"))
for _suffix, _form in STORES.items():
    _data = registers(4, max(1, _form[0] // 4))
    for _opcode, _text in spaces(f"store_{_suffix}", "", _data, 32):
        ROWS.append(Row(_opcode, _text, store(*_form), 32, f"{_form[0]} bytes to memory"))
    _name = ds_name(_suffix, "write")
    ROWS.append(
        Row(_name, f"{_name} v3, {_data} offset:32", store(*_form), 32, f"{_form[0]} bytes to LDS")
    )


# Two elements at once.


def load2(size, at0, at1):
    def function(memory, at, data, old):
        raw = bytes(memory[at + at0 : at + at0 + size] + memory[at + at1 : at + at1 + size])
        return list(np.frombuffer(raw, np.uint32))

    return function


def store2(size, at0, at1):
    def function(memory, at, data, old):
        raw = b"".join(int(d).to_bytes(4, "little") for d in data)
        memory[at + at0 : at + at0 + size] = raw[:size]
        memory[at + at1 : at + at1 + size] = raw[size : 2 * size]

    return function


for _bits in (32, 64):
    for _stride, _word in ((1, ""), (64, "st64")):
        _size, _dwords = _bits // 8, _bits // 32
        _places = (_size * _stride, 2 * _size * _stride)
        _name = f"ds_read2{_word}_b{_bits}"
        _text = f"{_name} {registers(8, 2 * _dwords)}, v3 offset0:1 offset1:2"
        ROWS.append(Row(_name, _text, load2(_size, *_places), 0, "two elements from LDS"))
        _name = f"ds_write2{_word}_b{_bits}"
        _data = f"{registers(4, _dwords)}, {registers(4 + _dwords, _dwords)}"
        _text = f"{_name} v3, {_data} offset0:1 offset1:2"
        ROWS.append(Row(_name, _text, store2(_size, *_places), 0, "two elements to LDS"))


def exchange2(size, at0, at1):
    def function(memory, at, data, old):
        before = load2(size, at0, at1)(memory, at, data, old)
        store2(size, at0, at1)(memory, at, data, old)
        return before

    return function


for _bits in (32, 64):
    for _stride, _word in ((1, ""), (64, "st64")):
        _size, _dwords = _bits // 8, _bits // 32
        _places = (_size * _stride, 2 * _size * _stride)
        _name = f"ds_wrxchg2{_word}_rtn_b{_bits}"
        _data = f"{registers(4, _dwords)}, {registers(4 + _dwords, _dwords)}"
        _text = f"{_name} {registers(8, 2 * _dwords)}, v3, {_data} offset0:1 offset1:2"
        ROWS.append(Row(_name, _text, exchange2(_size, *_places), 0, "two elements exchanged"))


# Atomics.


def signed(x: int, size: int) -> int:
    return x - (1 << 8 * size) if x >> (8 * size - 1) else x


COMBINE = {
    "swap": lambda old, x, n: x,
    "add": lambda old, x, n: (old + x) & MASK[n],
    "sub": lambda old, x, n: (old - x) & MASK[n],
    "smin": lambda old, x, n: min(old, x, key=lambda v: signed(v, n)),
    "smax": lambda old, x, n: max(old, x, key=lambda v: signed(v, n)),
    "umin": lambda old, x, n: min(old, x),
    "umax": lambda old, x, n: max(old, x),
    "and": lambda old, x, n: old & x,
    "or": lambda old, x, n: old | x,
    "xor": lambda old, x, n: old ^ x,
    "rsub": lambda old, x, n: (x - old) & MASK[n],
    "inc": lambda old, x, n: 0 if old >= x else old + 1,
    "dec": lambda old, x, n: x if old == 0 or old > x else old - 1,
}


def as_float(dtype, function):
    """A combination of floats as one of bit patterns."""
    dtype = np.dtype(dtype)
    word = np.dtype(f"u{dtype.itemsize}")

    def combine(old, x, n):
        values = [np.array(v, word).view(dtype)[()] for v in (old, x)]
        return int(np.array(function(*values), dtype).view(word))

    return combine


def bf16_sum(old, x, n):
    total = np.array([old << 16, x << 16], np.uint32).view(np.float32).sum(dtype=np.float32)
    bits = int(np.array(total, np.float32).view(np.uint32))
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def halves(function):
    def combine(old, x, n):
        low = function(old & 0xFFFF, x & 0xFFFF, 2)
        return low | function(old >> 16, x >> 16, 2) << 16

    return combine


FLOAT_COMBINE = {
    "add_f32": (4, "f32", as_float(np.float32, np.add)),
    "add_f64": (8, "f64", as_float(np.float64, np.add)),
    "min_f64": (8, "f64", as_float(np.float64, min)),
    "max_f64": (8, "f64", as_float(np.float64, max)),
    "pk_add_f16": (4, "f16", halves(as_float(np.float16, np.add))),
    "pk_add_bf16": (4, "bf16", halves(bf16_sum)),
}


def float_swap(dtype):
    """Compare-and-store of numbers: -0 is 0, and NaN is nothing."""
    dtype = np.dtype(dtype)

    def function(memory, at, data, old):
        raw = b"".join(int(d).to_bytes(4, "little") for d in data)
        n = dtype.itemsize
        before = bytes(memory[at : at + n])
        if np.frombuffer(before, dtype)[0] == np.frombuffer(raw[:n], dtype)[0]:
            memory[at : at + n] = raw[n : 2 * n]
        return list(np.frombuffer(before, np.uint32))

    return function


def number(better):
    """A minimum or maximum that takes the operand only if it is better, or memory is NaN."""
    return lambda old, x: x if better(x, old) or np.isnan(old) else old


def atomic(combine, size: int, compare_first: bool | None = None):
    """`compare_first`: which of two data operands is the comparand; None where there is one."""
    words = size // 4

    def function(memory, at, data, old):
        raw = b"".join(int(d).to_bytes(4, "little") for d in data)
        one, two = (int.from_bytes(raw[i * size : (i + 1) * size], "little") for i in (0, 1))
        before = int.from_bytes(memory[at : at + size], "little")
        if compare_first is None:
            after = combine(before, one, size)
        else:
            compare, new = (one, two) if compare_first else (two, one)
            after = new if before == compare else before
        memory[at : at + size] = int(after).to_bytes(size, "little")
        return [before >> 32 * i & MASK[4] for i in range(words)]

    return function


def masked_or(size: int):
    def function(memory, at, data, old):
        raw = b"".join(int(d).to_bytes(4, "little") for d in data)
        mask, value = (int.from_bytes(raw[i * size : (i + 1) * size], "little") for i in (0, 1))
        before = int.from_bytes(memory[at : at + size], "little")
        memory[at : at + size] = (before & ~mask | value).to_bytes(size, "little")
        return [before >> 32 * i & MASK[4] for i in range(size // 4)]

    return function


def no_result(function):
    def silent(*arguments):
        function(*arguments)

    return silent


def atomic_rows(name: str, size: int, function, data: str, meaning: str, floats=None):
    for target in (registers(8, size // 4), ""):
        for opcode, text in spaces(f"atomic_{name}", target, data, 48):
            made = function if target else no_result(function)
            ROWS.append(Row(opcode, text, made, 48, meaning, floats))


for _name, _combine in COMBINE.items():
    if _name == "rsub":
        continue  # in LDS only
    for _size, _suffix in ((4, ""), (8, "_x2")):
        _function = atomic(_combine, _size)
        atomic_rows(_name + _suffix, _size, _function, registers(4, _size // 4), f"memory {_name}")
for _size, _suffix in ((4, ""), (8, "_x2")):
    _function = atomic(None, _size, compare_first=False)
    _data = registers(4, _size // 2)
    atomic_rows("cmpswap" + _suffix, _size, _function, _data, "swap if memory is the comparand")
for _name, (_size, _floats, _combine) in FLOAT_COMBINE.items():
    _function, _data = atomic(_combine, _size), registers(4, _size // 4)
    atomic_rows(_name, _size, _function, _data, f"memory {_name}", _floats)

DS_ATOMICS = {
    **{n: (n, "u") for n in ("add", "sub", "rsub", "inc", "dec")},
    **{n: (n, "b") for n in ("and", "or", "xor")},
    "smin": ("min", "i"),
    "smax": ("max", "i"),
    "umin": ("min", "u"),
    "umax": ("max", "u"),
}


def ds_row(name: str, data: str, function, size: int, meaning: str, floats=None) -> None:
    target = f"{registers(8, size // 4)}, " if "_rtn_" in name else ""
    made = function if target else no_result(function)
    ROWS.append(Row(name, f"{name} {target}v3, {data} offset:8", made, 8, meaning, floats))


for _size in (4, 8):
    _bits, _one = 8 * _size, registers(4, _size // 4)
    for _name, (_ds, _letter) in DS_ATOMICS.items():
        for _rtn in ("", "_rtn"):
            _opcode = f"ds_{_ds}{_rtn}_{_letter}{_bits}"
            ds_row(_opcode, _one, atomic(COMBINE[_name], _size), _size, f"LDS {_name}")
    ds_row(f"ds_wrxchg_rtn_b{_bits}", _one, atomic(COMBINE["swap"], _size), _size, "LDS swap")
    _two = f"{_one}, {registers(4 + _size // 4, _size // 4)}"
    for _rtn in ("", "_rtn"):
        _meaning = "replace the bits of a mask"
        ds_row(f"ds_mskor{_rtn}_b{_bits}", _two, masked_or(_size), _size, _meaning)
        _function = atomic(None, _size, compare_first=True)
        ds_row(f"ds_cmpst{_rtn}_b{_bits}", _two, _function, _size, "swap if LDS is src0")
for _name, _floats in (
    *(("add_f32", "f32"), ("add_f64", "f64"), ("pk_add_f16", "f16"), ("pk_add_bf16", "bf16")),
):
    _size, _, _combine = FLOAT_COMBINE[_name]
    _head, _, _tail = _name.rpartition("_")
    ds_row(f"ds_{_name}", registers(4, _size // 4), atomic(_combine, _size), _size, _name, _floats)
    _opcode = f"ds_{_head}_rtn_{_tail}"
    ds_row(_opcode, registers(4, _size // 4), atomic(_combine, _size), _size, _name, _floats)
for _bits, _dtype in ((32, np.float32), (64, np.float64)):
    _size, _one = _bits // 8, registers(4, _bits // 32)
    _two = f"{_one}, {registers(4 + _bits // 32, _bits // 32)}"
    for _rtn in ("", "_rtn"):
        for _name, _better in (("min", np.less), ("max", np.greater)):
            _function = atomic(as_float(_dtype, number(_better)), _size)
            _opcode = f"ds_{_name}{_rtn}_f{_bits}"
            ds_row(_opcode, _one, _function, _size, f"LDS {_name}", f"few f{_size}")
        _opcode = f"ds_cmpst{_rtn}_f{_bits}"
        ds_row(_opcode, _two, float_swap(_dtype), _size, "swap if equal", f"few f{_size}")


def wrapped(memory, at, data, old):
    before = int.from_bytes(memory[at : at + 4], "little")
    less, more = (int(d) for d in data[:2])
    after = before - less if before >= less else (before + more) & MASK[4]
    memory[at : at + 4] = after.to_bytes(4, "little")
    return [before]


def conditional_exchange(memory, at, data, old):
    before = list(np.frombuffer(bytes(memory[at : at + 8]), np.uint32))
    for i in (0, 1):
        if int(data[i]) >> 31:
            memory[at + 4 * i : at + 4 * i + 4] = (int(data[i]) & 0x7FFFFFFF).to_bytes(4, "little")
    return before


ds_row("ds_wrap_rtn_b32", "v4, v5", wrapped, 4, "subtract, or add where that is negative")
ROWS.append(
    Row(
        "ds_condxchg32_rtn_b64",
        "ds_condxchg32_rtn_b64 v[8:9], v3, v[4:5] offset:8",
        conditional_exchange,
        8,
        "two exchanges where the top bit is set",
    )
)

# Buffer atomics with a result: it comes where the data was.
for _row in list(ROWS):
    if _row.opcode.startswith("global_atomic_") and _row.text.endswith("off offset:48 sc0"):
        _name = _row.opcode.removeprefix("global_")
        if "bf16" in _name:
            continue  # this chip has no such buffer atomic
        _size = 8 if _name.endswith(("x2", "f64")) else 4
        _words = _size // 4 * (1 + ("cmpswap" in _name))
        _copy = "".join(f"v_mov_b32 v{8 + i}, v{4 + i}\n  " for i in range(_words))
        _text = f"{_copy}buffer_{_name} {registers(8, _words)}, v3, s[12:15], 0 offen offset:48 sc0"

        def _moved(memory, at, data, old, function=_row.function, words=_words):
            got = function(memory, at, data, old)
            return [*got, *data[len(got) : words]]

        ROWS.append(Row(f"buffer_{_name}", _text, _moved, 48, _row.meaning, _row.floats))
