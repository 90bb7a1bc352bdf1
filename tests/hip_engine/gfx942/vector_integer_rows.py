"""Integer vector ALU opcodes: arithmetic, bits, 16-bit, packed, carries and selects."""

import numpy as np

from tests.hip_engine.gfx942.vector_rows import (
    I16,
    I32,
    I64,
    U16,
    U32,
    U64,
    low,
    rows,
    shifted,
    wide,
)


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
