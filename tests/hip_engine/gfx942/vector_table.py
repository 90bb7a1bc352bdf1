"""Vector ALU opcodes: operands, and a NumPy statement of what the ISA manual says they do.

A row is (opcode, "result source source ...", function, meaning). Functions take arrays of the
source kinds and return the result; `mask` as a result is a lane mask, and a source `carry` is the
lane mask in VCC, and `=f32` the destination's old value, which the text does not name. A function
of an opcode with two results returns both.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tests.hip_engine.gfx942 import exact

U32, I32, U64, I64 = np.uint32, np.int32, np.uint64, np.int64
U16, I16 = np.uint16, np.int16
F16, F32, F64 = np.float16, np.float32, np.float64


class Row(NamedTuple):
    opcode: str
    kinds: str
    function: Callable
    meaning: str
    ulp: int = 0  # what the manual leaves open in the last place
    text: str = ""  # the instruction where it is not `opcode destination, sources`


ROWS: list[Row] = []


def rows(*given) -> None:
    ROWS.extend(Row(*row) for row in given)


def wide(x):
    return x.astype(I64 if x.dtype.kind == "i" else U64)


def low(n, bits):
    return n & n.dtype.type(bits - 1)


def shifted(name, ty):
    """The count is the first source; its low bits count."""
    move = np.left_shift if name == "shl" else np.right_shift
    return lambda n, x: move(x, low(n, 8 * np.dtype(ty).itemsize).astype(ty))


def byte(x, i):
    return x >> U32(8 * i) & U32(255)


def signed24(x):
    return (x.astype(I32) << I32(8)) >> I32(8)


def unsigned24(x):
    return x & U32(0xFFFFFF)


def high32(x, y):
    return ((wide(x) * wide(y)) >> 32).astype(U64).astype(U32)


def count_leading(x):
    out = np.full(x.shape, -1, I32)
    for i in range(32):
        out = np.where((out < 0) & (x >> U32(31 - i) & U32(1) != 0), i, out)
    return out.astype(I32).view(U32)


def count_trailing(x):
    out = np.full(x.shape, -1, I32)
    for i in range(32):
        out = np.where((out < 0) & (x >> U32(i) & U32(1) != 0), i, out)
    return out.astype(I32).view(U32)


def reverse(x):
    return sum((x >> U32(i) & U32(1)) << U32(31 - i) for i in range(32)).astype(U32)


def field_mask(n):
    return ((U64(1) << low(n, 32).astype(U64)) - U64(1)).astype(U32)


def bfe_signed(x, offset, size):
    n = low(size, 32).astype(I32)
    value = (x.view(I32) >> low(offset, 32).astype(I32)).astype(I64)
    up = (32 - n).astype(I64)
    cut = ((value << up).astype(I32) >> np.minimum(up, 31).astype(I32)).view(U32)
    return np.where(n == 0, U32(0), cut)


def joined(x, y):
    return x.astype(U64) << U64(32) | y.astype(U64)


def perm(x, y, selector):
    data = joined(x, y)
    out = np.zeros_like(x)
    for i in range(4):
        pick = byte(selector, i)
        plain = (data >> (U64(8) * (pick.astype(U64) & U64(7)))) & U64(255)
        sign_at = U64(16) * (pick.astype(U64) & U64(3)) + U64(15)
        sign = np.where(data >> sign_at & U64(1) != 0, 255, 0)
        value = np.select([pick < 8, pick < 12, pick == 12], [plain.astype(I64), sign, 0], 255)
        out |= value.astype(U32) << U32(8 * i)
    return out


def sad(x, y, z):
    parts = [np.abs(byte(x, i).astype(I64) - byte(y, i).astype(I64)) for i in range(4)]
    return (sum(parts) + z.astype(I64)).astype(U32)


def masked_sad(x, y, z):
    parts = [
        np.where(byte(y, i) == 0, 0, np.abs(byte(x, i).astype(I64) - byte(y, i).astype(I64)))
        for i in range(4)
    ]
    return (sum(parts) + z.astype(I64)).astype(U32)


def sad16(x, y, z):
    parts = [
        np.abs((x >> U32(s) & U32(0xFFFF)).astype(I64) - (y >> U32(s) & U32(0xFFFF)).astype(I64))
        for s in (0, 16)
    ]
    return (sum(parts) + z.astype(I64)).astype(U32)


def sad32(x, y, z):
    return (np.abs(x.astype(I64) - y.astype(I64)) + z.astype(I64)).astype(U32)


def lerp(x, y, z):
    parts = [(byte(x, i) + byte(y, i) + (byte(z, i) & U32(1))) >> U32(1) for i in range(4)]
    return sum(p << U32(8 * i) for i, p in enumerate(parts)).astype(U32)


def popcount(x):
    return sum(x >> U32(i) & U32(1) for i in range(32)).astype(U32)


def mbcnt(first):
    def function(mask, base):
        lanes = np.arange(64)
        below = np.clip(lanes - first, 0, 32).astype(U64)
        return popcount(mask & ((U64(1) << below) - U64(1)).astype(U32)) + base

    return function


def median(x, y, z):
    return np.sort(np.stack([x, y, z]), 0)[1]


B = "u32 u32 u32"
T = "u32 u32 u32 u32"
rows(
    ("v_mov_b32", "u32 u32", lambda x: x, "copy"),
    ("v_mov_b64", "u64 u64", lambda x: x, "copy of 64 bits"),
    ("v_not_b32", "u32 u32", np.invert, "complement"),
    ("v_bfrev_b32", "u32 u32", reverse, "bits in reverse order"),
    ("v_ffbh_u32", "u32 u32", count_leading, "zeros above the highest one, or -1"),
    (
        "v_ffbh_i32",
        "u32 u32",
        lambda x: count_leading(np.where(x >> U32(31) != 0, ~x, x)),
        "bits above that equal the sign, or -1",
    ),
    ("v_ffbl_b32", "u32 u32", count_trailing, "index of the lowest one, or -1"),
    ("v_add_u32", B, np.add, "sum"),
    ("v_add_i32", B, np.add, "sum"),
    ("v_sub_u32", B, np.subtract, "difference"),
    ("v_sub_i32", B, np.subtract, "difference"),
    ("v_subrev_u32", B, lambda x, y: y - x, "difference, operands exchanged"),
    ("v_and_b32", B, np.bitwise_and, "and"),
    ("v_or_b32", B, np.bitwise_or, "or"),
    ("v_xor_b32", B, np.bitwise_xor, "exclusive or"),
    ("v_xnor_b32", B, lambda x, y: ~(x ^ y), "equivalence"),
    ("v_lshlrev_b32", B, shifted("shl", U32), "src1 << src0[4:0]"),
    ("v_lshrrev_b32", B, shifted("shr", U32), "src1 >> src0[4:0]"),
    ("v_ashrrev_i32", "i32 i32 i32", shifted("shr", I32), "signed src1 >> src0[4:0]"),
    ("v_lshlrev_b64", "u64 u32 u64", shifted("shl", U64), "src1 << src0[5:0]"),
    ("v_lshrrev_b64", "u64 u32 u64", shifted("shr", U64), "src1 >> src0[5:0]"),
    ("v_ashrrev_i64", "i64 u32 i64", shifted("shr", I64), "signed src1 >> src0[5:0]"),
    ("v_min_i32", "i32 i32 i32", np.minimum, "signed minimum"),
    ("v_max_i32", "i32 i32 i32", np.maximum, "signed maximum"),
    ("v_min_u32", B, np.minimum, "minimum"),
    ("v_max_u32", B, np.maximum, "maximum"),
    ("v_mul_lo_u32", B, np.multiply, "low half of the product"),
    ("v_mul_hi_u32", B, high32, "high half of the product"),
    ("v_mul_hi_i32", "u32 i32 i32", high32, "high half of the signed product"),
    ("v_mul_u32_u24", B, lambda x, y: unsigned24(x) * unsigned24(y), "product of 24 bits"),
    ("v_mul_i32_i24", "i32 u32 u32", lambda x, y: signed24(x) * signed24(y), "same, signed"),
    (
        "v_mul_hi_u32_u24",
        B,
        lambda x, y: high32(unsigned24(x), unsigned24(y)),
        "bits 47:32 of the product of 24 bits",
    ),
    ("v_mul_hi_i32_i24", B, lambda x, y: high32(signed24(x), signed24(y)), "same, signed"),
    (
        "v_mad_u32_u24",
        T,
        lambda x, y, z: unsigned24(x) * unsigned24(y) + z,
        "product of 24 bits plus src2",
    ),
    (
        "v_mad_i32_i24",
        "i32 u32 u32 i32",
        lambda x, y, z: signed24(x) * signed24(y) + z,
        "same, signed",
    ),
    ("v_add3_u32", T, lambda x, y, z: x + y + z, "sum of three"),
    ("v_lshl_add_u32", T, lambda x, n, y: (x << low(n, 32)) + y, "(src0 << src1) + src2"),
    ("v_add_lshl_u32", T, lambda x, y, n: (x + y) << low(n, 32), "(src0 + src1) << src2"),
    ("v_lshl_or_b32", T, lambda x, n, y: x << low(n, 32) | y, "src0 << src1 | src2"),
    ("v_and_or_b32", T, lambda x, y, z: x & y | z, "src0 & src1 | src2"),
    ("v_or3_b32", T, lambda x, y, z: x | y | z, "or of three"),
    ("v_xad_u32", T, lambda x, y, z: (x ^ y) + z, "(src0 ^ src1) + src2"),
    ("v_bfe_u32", T, lambda x, o, n: x >> low(o, 32) & field_mask(n), "bit field"),
    ("v_bfe_i32", T, bfe_signed, "signed bit field"),
    ("v_bfi_b32", T, lambda m, x, y: m & x | ~m & y, "src1 under the mask src0, else src2"),
    ("v_bfm_b32", B, lambda n, o: field_mask(n) << low(o, 32), "src0 ones at src1"),
    (
        "v_alignbit_b32",
        T,
        lambda x, y, n: (joined(x, y) >> low(n, 32).astype(U64)).astype(U32),
        "{src0, src1} >> src2[4:0]",
    ),
    (
        "v_alignbyte_b32",
        T,
        lambda x, y, n: (joined(x, y) >> (U64(8) * low(n, 4).astype(U64))).astype(U32),
        "{src0, src1} >> 8 src2[1:0]",
    ),
    ("v_perm_b32", T, perm, "bytes of {src0, src1} by selector"),
    ("v_bcnt_u32_b32", B, lambda x, y: popcount(x) + y, "ones in src0, plus src1"),
    ("v_mbcnt_lo_u32_b32", B, mbcnt(0), "ones of the mask below this lane, lanes 0 to 31"),
    ("v_mbcnt_hi_u32_b32", B, mbcnt(32), "the same for lanes 32 to 63"),
    ("v_sad_u8", T, sad, "sum of absolute byte differences plus src2"),
    ("v_msad_u8", T, masked_sad, "the same where the byte of src1 is not 0"),
    ("v_sad_hi_u8", T, lambda x, y, z: (sad(x, y, z * U32(0)) << U32(16)) + z, "the same << 16"),
    ("v_sad_u16", T, sad16, "sum of absolute 16-bit differences plus src2"),
    ("v_sad_u32", T, sad32, "absolute difference plus src2"),
    ("v_lerp_u8", T, lerp, "byte averages, rounded up where src2's bit 0 is set"),
    ("v_min3_i32", "i32 i32 i32 i32", lambda x, y, z: np.minimum(np.minimum(x, y), z), "min of 3"),
    ("v_max3_i32", "i32 i32 i32 i32", lambda x, y, z: np.maximum(np.maximum(x, y), z), "max of 3"),
    ("v_min3_u32", T, lambda x, y, z: np.minimum(np.minimum(x, y), z), "min of 3"),
    ("v_max3_u32", T, lambda x, y, z: np.maximum(np.maximum(x, y), z), "max of 3"),
    ("v_med3_i32", "i32 i32 i32 i32", median, "median"),
    ("v_med3_u32", T, median, "median"),
    (
        "v_lshl_add_u64",
        "u64 u64 u32 u64",
        lambda x, n, y: (x << low(n, 8).astype(U64)) + y,
        "(src0 << src1[2:0]) + src2 in 64 bits",
    ),
)

for _sign, _ty in (("u", U16), ("i", I16)):
    _2, _3 = " ".join([f"{_sign}16"] * 3), " ".join([f"{_sign}16"] * 4)
    rows(
        (f"v_min_{_sign}16", _2, np.minimum, "minimum"),
        (f"v_max_{_sign}16", _2, np.maximum, "maximum"),
        (f"v_mad_{_sign}16", _3, lambda x, y, z: x * y + z, "product plus src2"),
    )
rows(
    ("v_add_u16", "u16 u16 u16", np.add, "sum"),
    ("v_sub_u16", "u16 u16 u16", np.subtract, "difference"),
    ("v_subrev_u16", "u16 u16 u16", lambda x, y: y - x, "difference, operands exchanged"),
    ("v_add_i16", "i16 i16 i16", np.add, "sum"),
    ("v_sub_i16", "i16 i16 i16", np.subtract, "difference"),
    ("v_mul_lo_u16", "u16 u16 u16", np.multiply, "low half of the product"),
    ("v_lshlrev_b16", "u16 u16 u16", shifted("shl", U16), "src1 << src0[3:0]"),
    ("v_lshrrev_b16", "u16 u16 u16", shifted("shr", U16), "src1 >> src0[3:0]"),
    ("v_ashrrev_i16", "i16 i16 i16", shifted("shr", I16), "signed src1 >> src0[3:0]"),
)


# Packed 16-bit: the same function on both halves.


def packed(ty, function):
    def both(*sources):
        halves = []
        for shift in (0, 16):
            parts = [(s >> U32(shift)).astype(U16).view(ty) for s in sources]
            halves.append(np.ascontiguousarray(function(*parts).astype(ty)).view(U16).astype(U32))
        return halves[0] | halves[1] << U32(16)

    return both


def smaller(x, y):
    """Minimum: a number if one is NaN, and -0 below +0."""
    pick = (x < y) | ((x == y) & np.signbit(x))
    return np.where(np.isnan(x), y, np.where(np.isnan(y), x, np.where(pick, x, y)))


def larger(x, y):
    pick = (x > y) | ((x == y) & np.signbit(y))
    return np.where(np.isnan(x), y, np.where(np.isnan(y), x, np.where(pick, x, y)))


for _name, _function in (("add", np.add), ("sub", np.subtract)):
    for _sign, _ty in (("u", U16), ("i", I16)):
        rows((f"v_pk_{_name}_{_sign}16", B, packed(_ty, _function), f"{_name} of halves"))
for _sign, _ty in (("u", U16), ("i", I16)):
    rows(
        (f"v_pk_min_{_sign}16", B, packed(_ty, np.minimum), "minimum of halves"),
        (f"v_pk_max_{_sign}16", B, packed(_ty, np.maximum), "maximum of halves"),
        (f"v_pk_mad_{_sign}16", T, packed(_ty, lambda x, y, z: x * y + z), "product plus src2"),
    )
rows(
    ("v_pk_mul_lo_u16", B, packed(U16, np.multiply), "low products of halves"),
    ("v_pk_lshlrev_b16", B, packed(U16, shifted("shl", U16)), "shifts of halves"),
    ("v_pk_lshrrev_b16", B, packed(U16, shifted("shr", U16)), "shifts of halves"),
    ("v_pk_ashrrev_i16", B, packed(I16, shifted("shr", I16)), "signed shifts of halves"),
)


# Carries and selects.


def carried(sign):
    def function(x, y, bit):
        total = x.astype(I64) + sign * y.astype(I64) + sign * bit.astype(I64)
        return total.astype(U64).astype(U32), (total < 0) | (total > 0xFFFFFFFF)

    return function


rows(
    ("v_add_co_u32", "u32+mask u32 u32", lambda x, y: carried(1)(x, y, x * U32(0)), "sum, carry"),
    ("v_sub_co_u32", "u32+mask u32 u32", lambda x, y: carried(-1)(x, y, x * U32(0)), "borrow"),
    (
        "v_subrev_co_u32",
        "u32+mask u32 u32",
        lambda x, y: carried(-1)(y, x, x * U32(0)),
        "difference exchanged, borrow",
    ),
    ("v_addc_co_u32", "u32+mask u32 u32 carry", carried(1), "sum with carry in and out"),
    ("v_subb_co_u32", "u32+mask u32 u32 carry", carried(-1), "difference with borrow in and out"),
    (
        "v_subbrev_co_u32",
        "u32+mask u32 u32 carry",
        lambda x, y, bit: carried(-1)(y, x, bit),
        "the same, operands exchanged",
    ),
    (
        "v_cndmask_b32",
        "u32 u32 u32 carry",
        lambda x, y, m: np.where(m, y, x),
        "src1 where the mask",
    ),
)


def mad_u64(x, y, z):
    total = [int(a) * int(b) + int(c) for a, b, c in zip(x.flat, y.flat, z.flat, strict=True)]
    out = np.array([t & (2**64 - 1) for t in total], U64).reshape(x.shape)
    return out, np.array([t >> 64 != 0 for t in total]).reshape(x.shape)


rows(("v_mad_u64_u32", "u64+mask u32 u32 u64", mad_u64, "64-bit product plus src2, carry"))


# Floats.


def flushed(x):
    """f32 subnormals to a zero of their sign."""
    tiny = np.finfo(F32).tiny
    return np.where(np.abs(x) < tiny, np.copysign(F32(0), x), x) if x.dtype == F32 else x


def transcendental(function):
    def evaluate(x):
        return flushed(function(flushed(x).astype(F64)).astype(x.dtype))

    return evaluate


def turns(function):
    return lambda x: function((x - np.floor(x)) * (2 * np.pi))


def fract(x):
    below = np.nextafter(x.dtype.type(1), x.dtype.type(0))
    part = np.where(np.isinf(x), x.dtype.type(np.nan), x - np.floor(x))
    return np.where(part > below, below, part).astype(x.dtype)


def frexp_mantissa(x):
    return np.where(np.isfinite(x), np.frexp(x)[0], x).astype(x.dtype)


def frexp_exponent(ty):
    return lambda x: np.where(np.isfinite(x) & (x != 0), np.frexp(x)[1], 0).astype(ty)


def fmedian(x, y, z):
    nan = np.isnan(x) | np.isnan(y) | np.isnan(z)
    ordered = larger(smaller(x, y), smaller(larger(x, y), z))
    return np.where(nan, smaller(smaller(x, y), z), ordered)


for _kind, _ty in (("f16", F16), ("f32", F32), ("f64", F64)):
    _1, _2, _3 = (" ".join([_kind] * n) for n in (2, 3, 4))
    rows(
        (f"v_add_{_kind}", _2, np.add, "sum"),
        (f"v_mul_{_kind}", _2, np.multiply, "product"),
        (f"v_fma_{_kind}", _3, exact.fma, "src0 * src1 + src2, one rounding"),
        (f"v_min_{_kind}", _2, smaller, "minimum; a number if one is NaN"),
        (f"v_max_{_kind}", _2, larger, "maximum; a number if one is NaN"),
        (f"v_floor_{_kind}", _1, np.floor, "round down"),
        (f"v_ceil_{_kind}", _1, np.ceil, "round up"),
        (f"v_trunc_{_kind}", _1, np.trunc, "round toward 0"),
        (f"v_rndne_{_kind}", _1, np.rint, "round to nearest even"),
        (f"v_fract_{_kind}", _1, fract, "src0 - floor(src0), below 1"),
        (f"v_frexp_mant_{_kind}", _1, frexp_mantissa, "significand in [0.5, 1)"),
        (f"v_rcp_{_kind}", _1, transcendental(lambda x: 1 / x), "reciprocal", 1),
        (f"v_rsq_{_kind}", _1, transcendental(lambda x: 1 / np.sqrt(x)), "1 / sqrt", 1),
        (f"v_sqrt_{_kind}", _1, transcendental(np.sqrt), "square root", 1),
        (
            f"v_ldexp_{_kind}",
            f"{_kind} {_kind} {'i16' if _kind == 'f16' else 'i32'}",
            exact.ldexp,
            "src0 * 2^src1",
        ),
    )
for _kind in ("f16", "f32"):
    _1, _2, _3 = (" ".join([_kind] * n) for n in (2, 3, 4))
    rows(
        (f"v_sub_{_kind}", _2, np.subtract, "difference"),
        (f"v_subrev_{_kind}", _2, lambda x, y: y - x, "difference, operands exchanged"),
        (f"v_min3_{_kind}", _3, lambda x, y, z: smaller(smaller(x, y), z), "minimum of three"),
        (f"v_max3_{_kind}", _3, lambda x, y, z: larger(larger(x, y), z), "maximum of three"),
        (f"v_med3_{_kind}", _3, fmedian, "median; the minimum if one is NaN"),
        (f"v_exp_{_kind}", _1, transcendental(np.exp2), "2^src0", 1),
        (f"v_log_{_kind}", _1, transcendental(np.log2), "binary logarithm", 1),
        (f"v_sin_{_kind}", _1, transcendental(turns(np.sin)), "sine of turns", 1),
        (f"v_cos_{_kind}", _1, transcendental(turns(np.cos)), "cosine of turns", 1),
    )
rows(
    ("v_frexp_exp_i16_f16", "i16 f16", frexp_exponent(I16), "exponent of frexp_mant"),
    ("v_frexp_exp_i32_f32", "i32 f32", frexp_exponent(I32), "exponent of frexp_mant"),
    ("v_frexp_exp_i32_f64", "i32 f64", frexp_exponent(I32), "exponent of frexp_mant"),
    ("v_pk_add_f16", B, packed(F16, np.add), "sums of halves"),
    ("v_pk_mul_f16", B, packed(F16, np.multiply), "products of halves"),
    ("v_pk_fma_f16", T, packed(F16, exact.fma), "fused multiply-adds of halves"),
    ("v_pk_min_f16", B, packed(F16, smaller), "minima of halves"),
    ("v_pk_max_f16", B, packed(F16, larger), "maxima of halves"),
    (
        "v_mul_legacy_f32",
        "f32 f32 f32",
        lambda x, y: np.where((x == 0) | (y == 0), F32(0), x * y),
        "product; 0 times anything is 0",
    ),
)


# Conversions.


def to_integer(ty):
    """Toward zero, saturating; NaN gives 0."""
    info = np.iinfo(ty)

    def function(x):
        whole = np.trunc(np.where(np.isnan(x), 0, x).astype(F64))
        inside = np.clip(whole, float(info.min), float(info.max))
        return inside.astype(ty)

    return function


def toward_zero(x):
    near = x.astype(F16)
    over = np.abs(near.astype(F64)) > np.abs(x.astype(F64))
    return np.where(over, np.nextafter(near, F16(0)), near).astype(F16)


def halves(x, y):
    return x.view(U16).astype(U32) | y.view(U16).astype(U32) << U32(16)


def normal(ty):
    top = np.iinfo(ty).max

    def function(x, y):
        parts = []
        for v in (x, y):
            scaled = np.rint(v.astype(F64) * top)
            low_end = -top if ty is I16 else 0
            parts.append(np.clip(np.nan_to_num(scaled, nan=0.0), low_end, top).astype(ty))
        return halves(*parts)

    return function


def saturated(ty):
    info = np.iinfo(ty)
    return lambda x, y: halves(*(np.clip(v, info.min, info.max).astype(ty) for v in (x, y)))


def float_of(ty):
    return lambda x: x.astype(ty)


for _to, _from in (
    *(("f32", k) for k in ("i32", "u32", "f16", "f64")),
    *(("f64", k) for k in ("i32", "u32", "f32")),
    *(("f16", k) for k in ("i16", "u16", "f32")),
):
    _ty = {"f16": F16, "f32": F32, "f64": F64}[_to]
    rows((f"v_cvt_{_to}_{_from}", f"{_to} {_from}", float_of(_ty), f"{_from} to {_to}"))
for _to, _from in (
    *(("i32", k) for k in ("f32", "f64")),
    *(("u32", k) for k in ("f32", "f64")),
    ("i16", "f16"),
    ("u16", "f16"),
):
    _ty = {"i32": I32, "u32": U32, "i16": I16, "u16": U16}[_to]
    rows((f"v_cvt_{_to}_{_from}", f"{_to} {_from}", to_integer(_ty), "truncated and saturated"))
for _i in range(4):
    rows(
        (
            f"v_cvt_f32_ubyte{_i}",
            "f32 u32",
            lambda x, i=_i: byte(x, i).astype(F32),
            f"byte {_i} as a number",
        )
    )
rows(
    ("v_cvt_flr_i32_f32", "i32 f32", lambda x: to_integer(I32)(np.floor(x)), "floor"),
    (
        "v_cvt_rpi_i32_f32",
        "i32 f32",
        lambda x: to_integer(I32)(np.floor(x.astype(F64) + 0.5)),
        "floor(src0 + 0.5)",
    ),
    (
        "v_cvt_off_f32_i4",
        "f32 u32",
        lambda x: (((x & U32(15)).astype(I32) ^ 8) - 8).astype(F32) / F32(16),
        "signed 4 bits over 16",
    ),
    (
        "v_cvt_pkrtz_f16_f32",
        "u32 f32 f32",
        lambda x, y: halves(toward_zero(x), toward_zero(y)),
        "two f16, rounded toward 0",
    ),
    ("v_cvt_pknorm_i16_f32", "u32 f32 f32", normal(I16), "two signed fractions of 32767"),
    ("v_cvt_pknorm_u16_f32", "u32 f32 f32", normal(U16), "two fractions of 65535"),
    ("v_cvt_pk_i16_i32", "u32 i32 i32", saturated(I16), "two saturated 16-bit integers"),
    ("v_cvt_pk_u16_u32", "u32 u32 u32", saturated(U16), "two saturated 16-bit integers"),
    (
        "v_pack_b32_f16",
        "u32 u16 u16",
        lambda x, y: halves(x, y),
        "two f16 side by side",
    ),
)


# Comparisons.

CONDITIONS = {
    "lt": np.less,
    "eq": np.equal,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
FLOAT_CONDITIONS = CONDITIONS | {
    "lg": lambda x, y: (x < y) | (x > y),
    "o": lambda x, y: ~(np.isnan(x) | np.isnan(y)),
    "u": lambda x, y: np.isnan(x) | np.isnan(y),
    "nge": lambda x, y: ~(x >= y),
    "nlg": lambda x, y: ~((x < y) | (x > y)),
    "ngt": lambda x, y: ~(x > y),
    "nle": lambda x, y: ~(x <= y),
    "neq": lambda x, y: ~(x == y),
    "nlt": lambda x, y: ~(x < y),
    "f": lambda x, y: np.zeros(x.shape, bool),
    "tru": lambda x, y: np.ones(x.shape, bool),
}
INTEGER_CONDITIONS = CONDITIONS | {
    "ne": np.not_equal,
    "f": FLOAT_CONDITIONS["f"],
    "t": FLOAT_CONDITIONS["tru"],
}


def classified(x, wanted):
    """Bits of `wanted`: sNaN, qNaN, -inf, -normal, -subnormal, -0, then +0 and so on to +inf."""
    info = np.finfo(x.dtype)
    raw = x.view(f"u{x.dtype.itemsize}")
    quiet = raw >> raw.dtype.type(info.nmant - 1) & raw.dtype.type(1) != 0
    number = np.select(
        [np.isnan(x), np.isinf(x), x == 0, np.abs(x) < info.tiny],
        [np.where(quiet, 1, 0), 2, 5, 4],
        3,
    )
    number = np.where(~np.signbit(x) & ~np.isnan(x), 11 - number, number)
    return (wanted >> number.astype(U32)) & U32(1) != 0


for _prefix in ("v_cmp", "v_cmpx"):
    for _kind in ("f16", "f32", "f64"):
        for _name, _function in FLOAT_CONDITIONS.items():
            rows((f"{_prefix}_{_name}_{_kind}", f"mask {_kind} {_kind}", _function, _name))
        rows((f"{_prefix}_class_{_kind}", f"mask {_kind} u32", classified, "in a class of src1"))
    for _kind in ("i16", "u16", "i32", "u32", "i64", "u64"):
        for _name, _function in INTEGER_CONDITIONS.items():
            rows((f"{_prefix}_{_name}_{_kind}", f"mask {_kind} {_kind}", _function, _name))


# Accumulation in the destination, and forms whose text differs.


def half(x, i):
    return (x >> U32(16 * i)).astype(U16).view(F16)


def parts(x, bits, signed):
    """The fields of 32 bits, low first."""
    shifts = range(0, 32, bits)
    if signed:
        return [((x << U32(32 - bits - s)).view(I32) >> I32(32 - bits)).astype(I64) for s in shifts]
    return [(x >> U32(s) & U32((1 << bits) - 1)).astype(I64) for s in shifts]


def dot(bits, signed):
    def function(x, y, z):
        pairs = zip(parts(x, bits, signed), parts(y, bits, signed), strict=True)
        return (sum(a * b for a, b in pairs) + z.astype(I64)).astype(U64).astype(z.dtype)

    return function


def pairs_f32(function):
    def both(*sources):
        out = []
        for shift in (0, 32):
            values = [(s >> U64(shift)).astype(U32).view(F32) for s in sources]
            out.append(np.ascontiguousarray(function(*values).astype(F32)).view(U32).astype(U64))
        return out[0] | out[1] << U64(32)

    return both


def mad_i64(x, y, z):
    total = [int(a) * int(b) + int(c) for a, b, c in zip(x.flat, y.flat, z.flat, strict=True)]
    wrapped = np.array([t & (2**64 - 1) for t in total], U64).view(I64)
    return wrapped.reshape(x.shape)


def unfused(x, y, z):
    return x * y + z


def f16_quotient(quotient, den, num):
    """The quotient's size under the sign of num / den, but for NaN, zeros and infinities."""
    negative = np.signbit(den) ^ np.signbit(num)
    size = np.abs(quotient)
    size = np.where(np.isinf(den) | (num == 0), F16(0), size)
    size = np.where(np.isinf(num) | (den == 0), F16(np.inf), size)
    lost = (den == 0) & (num == 0) | np.isinf(den) & np.isinf(num) | np.isnan(den) | np.isnan(num)
    return np.where(lost, F16(np.nan), np.where(negative, -size, size)).astype(F16)


rows(
    ("v_mad_f16", "f16 f16 f16 f16", unfused, "src0 * src1 + src2, two roundings"),
    ("v_mac_f16", "f16 f16 f16 =f16", unfused, "destination plus src0 * src1, two roundings"),
    ("v_mad_legacy_u16", "u16 u16 u16 u16", unfused, "product plus src2, upper half cleared"),
    ("v_mad_legacy_i16", "i16 i16 i16 i16", unfused, "product plus src2, upper half cleared"),
    ("v_div_fixup_f16", "f16 f16 f16 f16", f16_quotient, "special cases of src2 / src1"),
)
for _kind in ("f32", "f64"):
    _kinds = f"{_kind} {_kind} {_kind} ={_kind}"
    rows((f"v_fmac_{_kind}", _kinds, exact.fma, "destination plus src0 * src1"))
for _sign, _signed in (("u", False), ("i", True)):
    _3 = " ".join([f"{_sign}16"] * 4)
    _32 = f"{_sign}32"
    rows(
        (f"v_min3_{_sign}16", _3, lambda x, y, z: np.minimum(np.minimum(x, y), z), "min of 3"),
        (f"v_max3_{_sign}16", _3, lambda x, y, z: np.maximum(np.maximum(x, y), z), "max of 3"),
        (f"v_med3_{_sign}16", _3, median, "median"),
        (
            f"v_mad_{_32}_{_sign}16",
            f"{_32} {_sign}16 {_sign}16 {_32}",
            lambda x, y, z: x.astype(z.dtype) * y.astype(z.dtype) + z,
            "product of 16 bits plus src2",
        ),
        (f"v_dot2_{_32}_{_sign}16", f"{_32} u32 u32 {_32}", dot(16, _signed), "dot of 2"),
    )
rows(
    ("v_dot4_i32_i8", "i32 u32 u32 i32", dot(8, True), "dot of 4 bytes plus src2"),
    ("v_dot4_u32_u8", "u32 u32 u32 u32", dot(8, False), "dot of 4 bytes plus src2"),
    ("v_dot8_i32_i4", "i32 u32 u32 i32", dot(4, True), "dot of 8 nibbles plus src2"),
    ("v_dot8_u32_u4", "u32 u32 u32 u32", dot(4, False), "dot of 8 nibbles plus src2"),
    ("v_dot2c_i32_i16", "i32 u32 u32 =i32", dot(16, True), "dot of 2 into the destination"),
    ("v_dot4c_i32_i8", "i32 u32 u32 =i32", dot(8, True), "dot of 4 into the destination"),
    ("v_dot8c_i32_i4", "i32 u32 u32 =i32", dot(4, True), "dot of 8 into the destination"),
    ("v_pk_fmac_f16", "u32 u32 u32 =u32", packed(F16, exact.fma), "halves of fmac"),
    ("v_pk_add_f32", "u64 u64 u64", pairs_f32(np.add), "two sums"),
    ("v_pk_mul_f32", "u64 u64 u64", pairs_f32(np.multiply), "two products"),
    ("v_pk_fma_f32", "u64 u64 u64 u64", pairs_f32(exact.fma), "two fused multiply-adds"),
    (
        "v_pk_mov_b32",
        "u64 u64 u64",
        lambda x, y: x >> U64(32) | y << U64(32),
        "a dword of each source",
        0,
        "v_pk_mov_b32 v[20:21], v[10:11], v[12:13] op_sel:[1,0]",
    ),
    (
        "v_mad_i64_i32",
        "i64 i32 i32 i64",
        mad_i64,
        "64-bit product plus src2",
        0,
        "v_mad_i64_i32 v[20:21], s[14:15], v10, v12, v[14:15]",
    ),
    (
        "v_fmaak_f32",
        "f32 f32 f32",
        lambda x, y: exact.fma(x, y, np.full(x.shape, 3.5, F32)),
        "src0 * src1 plus a literal",
        0,
        "v_fmaak_f32 v20, v10, v12, 0x40600000",
    ),
    (
        "v_fmamk_f32",
        "f32 f32 f32",
        lambda x, y: exact.fma(x, np.full(x.shape, 3.5, F32), y),
        "src0 times a literal plus src1",
        0,
        "v_fmamk_f32 v20, v10, 0x40600000, v12",
    ),
    (
        "v_fma_mix_f32",
        "f32 u32 f32 f32",
        lambda x, y, z: exact.fma(half(x, 1).astype(F32), y, -np.abs(z)),
        "f32 fma whose sources may be halves",
        0,
        "v_fma_mix_f32 v20, v10, v12, -|v14| op_sel:[1,0,0] op_sel_hi:[1,0,0]",
    ),
    (
        "v_fma_mixlo_f16",
        "u32 f32 f32 u32 =u32",
        lambda x, y, z, old: halves(
            exact.fma(x, y, half(z, 0).astype(F32)).astype(F16), half(old, 1)
        ),
        "the same rounded into the low half",
        0,
        "v_fma_mixlo_f16 v20, v10, v12, v14 op_sel_hi:[0,0,1]",
    ),
    (
        "v_fma_mixhi_f16",
        "u32 f32 f32 u32 =u32",
        lambda x, y, z, old: halves(
            half(old, 0), exact.fma(x, y, half(z, 0).astype(F32)).astype(F16)
        ),
        "the same rounded into the high half",
        0,
        "v_fma_mixhi_f16 v20, v10, v12, v14 op_sel_hi:[0,0,1]",
    ),
    (
        "v_accvgpr_write_b32",
        "u32 u32",
        lambda x: x,
        "copy to an AccVGPR",
        0,
        "v_accvgpr_write_b32 a3, v10\n  v_accvgpr_mov_b32 a4, a3\n  v_accvgpr_read_b32 v20, a4",
    ),
    (
        "v_swap_b32",
        "u32 u32",
        lambda x: x,
        "exchange of two registers",
        0,
        "v_mov_b32 v30, v10\n  v_swap_b32 v20, v30",
    ),
    ("v_rcp_iflag_f32", "f32 f32", transcendental(lambda x: 1 / x), "reciprocal", 1),
    ("v_exp_legacy_f32", "f32 f32", transcendental(np.exp2), "2^src0", 1),
    ("v_log_legacy_f32", "f32 f32", transcendental(np.log2), "binary logarithm", 1),
)
