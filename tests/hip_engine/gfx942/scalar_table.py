"""Scalar ALU opcodes: operands, and a NumPy statement of what the ISA manual says they do.

A row is (opcode, "result source source", function, meaning). Functions take arrays of the source
kinds, then SCC, then EXEC; they return (result or None, SCC or None where it stays, EXEC or None).
A source `k` is a 16-bit immediate of the table K.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

U32, I32, U64, I64 = np.uint32, np.int32, np.uint64, np.int64
K = (0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x1234)


class Row(NamedTuple):
    opcode: str
    kinds: str
    function: Callable
    meaning: str


ROWS: list[Row] = []


def rows(*given) -> None:
    ROWS.extend(Row(*row) for row in given)


def stays(function):
    """A result that leaves SCC alone."""
    return lambda *a: (function(*a[:-2]), None, None)


def nonzero(function):
    """SCC is whether the result is not 0."""

    def both(*a):
        value = function(*a[:-2])
        return value, value != 0, None

    return both


def test(function):
    """Only SCC."""
    return lambda *a: (None, function(*a[:-2]), None)


def bits_of(x):
    return 8 * x.dtype.itemsize


def low(n, bits):
    return n & n.dtype.type(bits - 1)


def shift(move):
    return lambda x, n: move(x, low(n, bits_of(x)).astype(x.dtype))


def ones(x):
    return sum(x >> x.dtype.type(i) & x.dtype.type(1) for i in range(bits_of(x))).astype(U32)


def first(x, order):
    out = np.full(x.shape, -1, I32)
    for position, i in enumerate(order):
        out = np.where((out < 0) & (x >> x.dtype.type(i) & x.dtype.type(1) != 0), position, out)
    return out.astype(I32).view(U32)


def lowest(x):
    return first(x, range(bits_of(x)))


def highest(x):
    return first(x, range(bits_of(x) - 1, -1, -1))


def differs_from_sign(x):
    return highest(np.where(x >> x.dtype.type(bits_of(x) - 1) != 0, ~x, x))


def reverse(x):
    one, top = x.dtype.type(1), bits_of(x) - 1
    return sum((x >> x.dtype.type(i) & one) << x.dtype.type(top - i) for i in range(top + 1))


def quads(x):
    out = np.zeros_like(x)
    for i in range(0, bits_of(x), 4):
        group = x >> x.dtype.type(i) & x.dtype.type(15)
        out |= np.where(group != 0, x.dtype.type(15), x.dtype.type(0)) << x.dtype.type(i)
    return out


def field(signed):
    """src0's field of src1[22:16] bits at src1[4:0] (or [5:0])."""

    def function(x, control):
        bits = bits_of(x)
        out = []
        for value, c in zip(x.ravel().tolist(), control.ravel().tolist(), strict=True):
            offset, size = c & (bits - 1), c >> 16 & 127
            size = min(size, bits - offset)
            part = (value & (1 << bits) - 1) >> offset & (1 << size) - 1
            if signed and size and part >> (size - 1):
                part |= (1 << bits) - (1 << size)
            out.append(part)
        return np.array(out, f"u{bits // 8}").reshape(x.shape)

    return function


def ones_at(ty):
    bits = 8 * np.dtype(ty).itemsize
    return lambda n, o: ((ty(1) << low(n, bits).astype(ty)) - ty(1)) << low(o, bits).astype(ty)


def total(sign, carry):
    def function(x, y, scc, exec_):
        wide = x.astype(I64) + sign * y.astype(I64) + (sign * scc.astype(I64) if carry else 0)
        return wide.astype(U64).astype(U32), (wide < 0) | (wide > 0xFFFFFFFF), None

    return function


def signed_total(sign):
    def function(x, y, scc, exec_):
        wide = x.astype(I64) + sign * y.astype(I64)
        return wide.astype(I32), (wide > 2**31 - 1) | (wide < -(2**31)), None

    return function


def chosen(better):
    return lambda x, y, scc, exec_: (np.where(better(x, y), x, y), better(x, y), None)


def high_half(x, y):
    wide = U64 if x.dtype == U32 else I64
    return (x.astype(wide) * y.astype(wide) >> wide(32)).astype(U64).astype(U32)


def shift_add(n):
    def function(x, y, scc, exec_):
        wide = (x.astype(U64) << U64(n)) + y.astype(U64)
        return wide.astype(U32), wide >> U64(32) != 0, None

    return function


def packed(x_shift, y_shift):
    def function(x, y):
        return x >> U32(x_shift) & U32(0xFFFF) | (y >> U32(y_shift) & U32(0xFFFF)) << U32(16)

    return function


def distance(x, y):
    return np.abs((x.astype(I64) - y.astype(I64)).astype(I32))


LOGIC = {
    "and": lambda x, y: x & y,
    "or": lambda x, y: x | y,
    "xor": lambda x, y: x ^ y,
    "nand": lambda x, y: ~(x & y),
    "nor": lambda x, y: ~(x | y),
    "xnor": lambda x, y: ~(x ^ y),
    "andn2": lambda x, y: x & ~y,
    "orn2": lambda x, y: x | ~y,
}
rows(
    ("s_add_u32", "u32 u32 u32", total(1, False), "sum, carry in SCC"),
    ("s_sub_u32", "u32 u32 u32", total(-1, False), "difference, borrow in SCC"),
    ("s_addc_u32", "u32 u32 u32", total(1, True), "sum with carry"),
    ("s_subb_u32", "u32 u32 u32", total(-1, True), "difference with borrow"),
    ("s_add_i32", "i32 i32 i32", signed_total(1), "sum, overflow in SCC"),
    ("s_sub_i32", "i32 i32 i32", signed_total(-1), "difference, overflow in SCC"),
    ("s_min_i32", "i32 i32 i32", chosen(np.less), "minimum, SCC if src0"),
    ("s_max_i32", "i32 i32 i32", chosen(np.greater), "maximum, SCC if src0"),
    ("s_min_u32", "u32 u32 u32", chosen(np.less), "minimum, SCC if src0"),
    ("s_max_u32", "u32 u32 u32", chosen(np.greater), "maximum, SCC if src0"),
    ("s_mul_i32", "u32 u32 u32", stays(np.multiply), "low half of the product"),
    ("s_mul_hi_u32", "u32 u32 u32", stays(high_half), "high half of the product"),
    ("s_mul_hi_i32", "u32 i32 i32", stays(high_half), "high half of the signed product"),
    ("s_bfe_u32", "u32 u32 u32", nonzero(field(False)), "bit field"),
    ("s_bfe_i32", "u32 u32 u32", nonzero(field(True)), "signed bit field"),
    ("s_bfe_u64", "u64 u64 u32", nonzero(field(False)), "bit field"),
    ("s_bfe_i64", "u64 u64 u32", nonzero(field(True)), "signed bit field"),
    ("s_bfm_b32", "u32 u32 u32", stays(ones_at(U32)), "src0 ones at src1"),
    ("s_bfm_b64", "u64 u32 u32", stays(ones_at(U64)), "src0 ones at src1"),
    ("s_pack_ll_b32_b16", "u32 u32 u32", stays(packed(0, 0)), "low halves"),
    ("s_pack_lh_b32_b16", "u32 u32 u32", stays(packed(0, 16)), "low half, high half"),
    ("s_pack_hh_b32_b16", "u32 u32 u32", stays(packed(16, 16)), "high halves"),
    ("s_absdiff_i32", "i32 i32 i32", nonzero(distance), "absolute difference"),
    ("s_flbit_i32", "u32 u32", stays(differs_from_sign), "bits equal to the sign, or -1"),
    ("s_flbit_i32_i64", "u32 u64", stays(differs_from_sign), "bits equal to the sign, or -1"),
    ("s_abs_i32", "i32 i32", nonzero(np.abs), "magnitude"),
    (
        "s_sext_i32_i8",
        "i32 u32",
        stays(lambda x: x.astype(np.uint8).view(np.int8).astype(I32)),
        "sign of bit 7",
    ),
    (
        "s_sext_i32_i16",
        "i32 u32",
        stays(lambda x: x.astype(np.uint16).view(np.int16).astype(I32)),
        "sign of bit 15",
    ),
    ("s_movk_i32", "i32 k", stays(lambda k: k.astype(I32)), "signed immediate"),
)
for _n in (1, 2, 3, 4):
    rows((f"s_lshl{_n}_add_u32", "u32 u32 u32", shift_add(_n), f"(src0 << {_n}) + src1, carry"))
for _bits in (32, 64):
    _u, _i = f"u{_bits}", f"i{_bits}"
    for _name, _function in LOGIC.items():
        rows((f"s_{_name}_b{_bits}", f"{_u} {_u} {_u}", nonzero(_function), _name))
    rows(
        (f"s_lshl_b{_bits}", f"{_u} {_u} u32", nonzero(shift(np.left_shift)), "shift left"),
        (f"s_lshr_b{_bits}", f"{_u} {_u} u32", nonzero(shift(np.right_shift)), "shift right"),
        (f"s_ashr_i{_bits}", f"{_i} {_i} u32", nonzero(shift(np.right_shift)), "signed shift"),
        (f"s_mov_b{_bits}", f"{_u} {_u}", stays(lambda x: x), "copy"),
        (f"s_not_b{_bits}", f"{_u} {_u}", nonzero(np.invert), "complement"),
        (f"s_wqm_b{_bits}", f"{_u} {_u}", nonzero(quads), "whole quads"),
        (f"s_brev_b{_bits}", f"{_u} {_u}", stays(reverse), "bits in reverse order"),
        (f"s_bcnt0_i32_b{_bits}", f"u32 {_u}", nonzero(lambda x: ones(~x)), "count of zeros"),
        (f"s_bcnt1_i32_b{_bits}", f"u32 {_u}", nonzero(ones), "count of ones"),
        (f"s_ff0_i32_b{_bits}", f"u32 {_u}", stays(lambda x: lowest(~x)), "lowest zero, or -1"),
        (f"s_ff1_i32_b{_bits}", f"u32 {_u}", stays(lowest), "lowest one, or -1"),
        (f"s_flbit_i32_b{_bits}", f"u32 {_u}", stays(highest), "zeros above the top one, or -1"),
        (
            f"s_cselect_b{_bits}",
            f"{_u} {_u} {_u}",
            lambda x, y, scc, exec_: (np.where(scc, x, y), None, None),
            "src0 if SCC, else src1",
        ),
        (
            f"s_bitcmp0_b{_bits}",
            f"- {_u} u32",
            test(lambda x, n: shift(np.right_shift)(x, n) & x.dtype.type(1) == 0),
            "is the bit 0",
        ),
        (
            f"s_bitcmp1_b{_bits}",
            f"- {_u} u32",
            test(lambda x, n: shift(np.right_shift)(x, n) & x.dtype.type(1) == 1),
            "is the bit 1",
        ),
    )


def any_of_quads(x):
    fifteen = x.dtype.type(15)
    groups = range(bits_of(x) // 4)
    quads = [(x >> x.dtype.type(4 * i) & fifteen != 0).astype(x.dtype) for i in groups]
    return sum(quad << x.dtype.type(i) for i, quad in enumerate(quads))


def doubled(x):
    return sum((x.astype(U64) >> U64(i) & U64(1)) * U64(3) << U64(2 * i) for i in range(32))


rows(
    ("s_quadmask_b32", "u32 u32", nonzero(any_of_quads), "is any bit of a quad set"),
    ("s_quadmask_b64", "u64 u64", nonzero(any_of_quads), "is any bit of a quad set"),
    ("s_bitreplicate_b64_b32", "u64 u32", stays(doubled), "every bit twice"),
)
CONDITIONS = {
    "eq": np.equal,
    "lg": np.not_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lt": np.less,
    "le": np.less_equal,
}
for _name, _function in CONDITIONS.items():
    for _kind in ("i32", "u32"):
        rows((f"s_cmp_{_name}_{_kind}", f"- {_kind} {_kind}", test(_function), _name))
for _name in ("eq", "lg"):
    rows((f"s_cmp_{_name}_u64", "- u64 u64", test(CONDITIONS[_name]), _name))


def saved(function):
    def save(x, scc, exec_):
        new = function(x, exec_)
        return exec_, new != 0, new

    return save


def written(function):
    def write(x, scc, exec_):
        new = function(x, exec_)
        return new, new != 0, new

    return write


for _name, _function in (
    LOGIC | {"andn1": lambda x, y: ~x & y, "orn1": lambda x, y: ~x | y}
).items():
    rows((f"s_{_name}_saveexec_b64", "u64 u64", saved(_function), "EXEC aside, then changed"))
rows(
    ("s_andn1_wrexec_b64", "u64 u64", written(lambda x, y: ~x & y), "EXEC and result"),
    ("s_andn2_wrexec_b64", "u64 u64", written(lambda x, y: x & ~y), "EXEC and result"),
)


# Opcodes that change their destination: the old value comes as the last source.

CHANGES: list[Row] = []


def changes(*given) -> None:
    CHANGES.extend(Row(*row) for row in given)


def signed_k(k):
    return k.astype(I64)


for _bits in (32, 64):
    _u, _ty = f"u{_bits}", {32: U32, 64: U64}[_bits]
    changes(
        (
            f"s_cmov_b{_bits}",
            f"{_u} {_u}",
            lambda x, old, scc, exec_: (np.where(scc, x, old), None, None),
            "copy if SCC",
        ),
        (
            f"s_bitset0_b{_bits}",
            f"{_u} u32",
            stays(
                lambda n, old: old & ~(old.dtype.type(1) << low(n, bits_of(old)).astype(old.dtype))
            ),
            "clear a bit",
        ),
        (
            f"s_bitset1_b{_bits}",
            f"{_u} u32",
            stays(lambda n, old: old | old.dtype.type(1) << low(n, bits_of(old)).astype(old.dtype)),
            "set a bit",
        ),
    )
changes(
    (
        "s_cmovk_i32",
        "i32 k",
        lambda k, old, scc, exec_: (np.where(scc, signed_k(k), old).astype(I32), None, None),
        "immediate if SCC",
    ),
    (
        "s_addk_i32",
        "i32 k",
        lambda k, old, scc, exec_: signed_total(1)(old, k, scc, exec_),
        "plus an immediate, overflow in SCC",
    ),
    (
        "s_mulk_i32",
        "i32 k",
        stays(lambda k, old: (old.astype(I64) * signed_k(k)).astype(I32)),
        "times an immediate",
    ),
)
for _name, _function in CONDITIONS.items():
    for _kind in ("i32", "u32"):

        def compared(k, old, scc, exec_, f=_function, unsigned=_kind == "u32"):
            value = k.astype(I64) & 0xFFFF if unsigned else signed_k(k)
            return None, f(old.astype(I64), value), None

        changes((f"s_cmpk_{_name}_{_kind}", f"{_kind} k", compared, f"{_name} an immediate"))
