"""Vector ALU opcodes that accumulate, and forms whose text differs from the plain one."""

import numpy as np

from tests.hip_engine.gfx942 import exact
from tests.hip_engine.gfx942.vector_float_rows import halves, transcendental
from tests.hip_engine.gfx942.vector_integer_rows import median, packed
from tests.hip_engine.gfx942.vector_rows import F16, F32, I32, I64, U16, U32, U64, rows

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
