"""Sliding sums of differences, byte packs, cube maps, legacy halves and the bits of 2/pi."""

import math
from fractions import Fraction

import numpy as np

from tests.hip_engine.gfx942 import exact
from tests.hip_engine.gfx942.vector_float_rows import halves
from tests.hip_engine.gfx942.vector_form_rows import f16_quotient, unfused
from tests.hip_engine.gfx942.vector_integer_rows import joined, masked_sad, sad
from tests.hip_engine.gfx942.vector_rows import F16, F32, F64, I16, U16, U32, U64, rows

# Sums of differences over four windows of a qword.


def window(x, n):
    return (x >> U64(8 * n)).astype(U32)


def quad(sad_of):
    def function(x, y, z):
        out = np.zeros_like(x)
        for n in range(4):
            addend = (z >> U64(16 * n) & U64(0xFFFF)).astype(U32)
            total = sad_of(window(x, n), y, addend) & U32(0xFFFF)
            out |= total.astype(U64) << U64(16 * n)
        return out

    return function


def rotated(x, n):
    return x << U32(n) | x >> U32(32 - n)


def quad_wide(x, y, z, old):
    """The four dwords folded into two, as the text below does."""
    addends = [z.astype(U32), (z >> U64(32)).astype(U32), old.astype(U32), window(old, 4)]
    sums = [masked_sad(window(x, n), y, addend) for n, addend in enumerate(addends)]
    return joined(sums[1] ^ rotated(sums[3], 25), sums[0] ^ rotated(sums[2], 25))


QUAD_WIDE = """v_mov_b32 v32, v14
  v_mov_b32 v33, v15
  v_mov_b32 v34, v20
  v_mov_b32 v35, v21
  v_mqsad_u32_u8 v[36:39], v[10:11], v12, v[32:35]
  v_alignbit_b32 v38, v38, v38, 7
  v_alignbit_b32 v39, v39, v39, 7
  v_xor_b32 v20, v36, v38
  v_xor_b32 v21, v37, v39"""


# Packs.


def saturated_bytes(x):
    parts = [np.clip(half_of.view(I16), 0, 255).astype(U32) for half_of in words(x)]
    return parts[0] | parts[1] << U32(8)


def words(x):
    return [(x >> U32(16 * i) & U32(0xFFFF)).astype(U16) for i in (0, 1)]


def insert_byte(x, place, old):
    byte = np.clip(np.nan_to_num(np.rint(x.astype(F64)), nan=0, posinf=255, neginf=0), 0, 255)
    shift = U32(8) * (place & U32(3))
    return old & ~(U32(255) << shift) | byte.astype(U32) << shift


def normal_f16(ty):
    most = np.iinfo(ty).max
    least = 0 if ty is U16 else -most

    def function(x):
        y = np.rint(x.astype(F64) * most)
        return np.clip(np.nan_to_num(y, nan=0, posinf=most, neginf=least), least, most).astype(ty)

    return function


def packed_normal(ty):
    one = normal_f16(ty)
    return lambda x, y: halves(one(x).view(F16), one(y).view(F16))


# Cube maps: faces +x, -x, +y, -y, +z, -z.

AXES = {  # face -> (s, t), each a sign and a coordinate
    0: ((-1, "z"), (-1, "y")),
    1: ((1, "z"), (-1, "y")),
    2: ((1, "x"), (1, "z")),
    3: ((1, "x"), (-1, "z")),
    4: ((1, "x"), (-1, "y")),
    5: ((-1, "x"), (-1, "y")),
}


def faces(x, y, z):
    def one(a, b, c):
        if abs(c) >= abs(a) and abs(c) >= abs(b):
            return 5 if c < 0 else 4
        if abs(b) >= abs(a):
            return 3 if b < 0 else 2
        return 1 if a < 0 else 0

    return np.vectorize(one)(x, y, z)


def face_coordinate(which):
    def function(x, y, z):
        given, face = {"x": x, "y": y, "z": z}, faces(x, y, z)
        chosen = [AXES[number][which] for number in range(6)]
        return np.choose(face, [given[name] if sign > 0 else -given[name] for sign, name in chosen])

    return function


def twice_the_major(x, y, z):
    return F32(2) * np.choose(faces(x, y, z) // 2, [x, y, z])


# 2/pi: an enclosure by Machin's formula gives every bit that is used.

BITS = 1201


def two_over_pi() -> int:
    def arctan(inverse):
        return sum(
            Fraction((-1) ** n, (2 * n + 1) * inverse ** (2 * n + 1)) for n in range(1400 // 2)
        )

    scale = 2**1400
    pi = 16 * int(arctan(5) * scale) - 4 * int(arctan(239) * scale)
    return 2 * scale * 2**BITS // pi


TWO_OVER_PI = two_over_pi()


def segments(x, segment):
    out = np.empty(x.shape)
    for at in np.ndindex(x.shape):
        exponent = int(np.float64(x[at]).view(U64) >> U64(52)) & 2047
        first = 53 * (int(segment[at]) & 31) + max(0, exponent - 1077)
        chosen = (TWO_OVER_PI << first) % 2**BITS >> (BITS - 53)
        out[at] = math.ldexp(chosen, -53 - first + (128 if exponent >= 1968 else 0))
    return out


rows(
    ("v_qsad_pk_u16_u8", "u64 u64 u32 u64", quad(sad), "four sums over sliding bytes"),
    ("v_mqsad_pk_u16_u8", "u64 u64 u32 u64", quad(masked_sad), "the same, bytes of 0 left out"),
    ("v_mqsad_u32_u8", "u64 u64 u32 u64 =u64", quad_wide, "with 32-bit sums", 0, QUAD_WIDE),
    ("v_sat_pk_u8_i16", "u32 u32", saturated_bytes, "two halves to bytes"),
    ("v_cvt_pk_u8_f32", "u32 f32 u32 u32", insert_byte, "a rounded byte into src2"),
    ("v_cvt_pkaccum_u8_f32", "u32 f32 u32 =u32", insert_byte, "a rounded byte into dst"),
    ("v_cvt_norm_i16_f16", "i16 f16", normal_f16(I16), "scaled by 32767"),
    ("v_cvt_norm_u16_f16", "u16 f16", normal_f16(U16), "scaled by 65535"),
    ("v_cvt_pknorm_i16_f16", "u32 f16 f16", packed_normal(I16), "two scaled by 32767"),
    ("v_cvt_pknorm_u16_f16", "u32 f16 f16", packed_normal(U16), "two scaled by 65535"),
    ("v_mad_legacy_f16", "f16 f16 f16 f16", unfused, "product, then sum"),
    ("v_fma_legacy_f16", "f16 f16 f16 f16", exact.fma, "fused multiply-add"),
    ("v_div_fixup_legacy_f16", "f16 f16 f16 f16", f16_quotient, "special quotients"),
    (
        "v_madak_f16",
        "f16 f16 f16",
        lambda x, y: unfused(x, y, np.full(x.shape, 3.5, F16)),
        "src0 * src1 plus a literal",
        0,
        "v_madak_f16 v20, v10, v12, 0x4300",
    ),
    (
        "v_madmk_f16",
        "f16 f16 f16",
        lambda x, y: unfused(x, np.full(x.shape, 3.5, F16), y),
        "src0 times a literal plus src1",
        0,
        "v_madmk_f16 v20, v10, 0x4300, v12",
    ),
    (
        "v_cubeid_f32",
        "f32 f32 f32 f32",
        lambda x, y, z: faces(x, y, z).astype(F32),
        "face of a direction",
    ),
    ("v_cubema_f32", "f32 f32 f32 f32", twice_the_major, "twice its largest coordinate"),
    ("v_cubesc_f32", "f32 f32 f32 f32", face_coordinate(0), "coordinate s on the face"),
    ("v_cubetc_f32", "f32 f32 f32 f32", face_coordinate(1), "coordinate t on the face"),
    ("v_trig_preop_f64", "f64 f64 u32", segments, "53 bits of 2/pi"),
)
