"""Floating-point vector ALU opcodes, conversions and comparisons."""

import numpy as np

from tests.hip_engine.gfx942 import exact
from tests.hip_engine.gfx942.vector_integer_rows import B, T, byte, larger, packed, smaller
from tests.hip_engine.gfx942.vector_rows import F16, F32, F64, I16, I32, U16, U32, rows

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
