"""VOP1, VOP2, VOP3 and VOP3P on floating-point lanes, except comparisons and conversions.

Transcendental instructions have no published last bit: here they return the correctly rounded
value, with f32 subnormals flushed on input and output as LLVM assumes of the hardware.
"""

from hip_engine.gfx942 import layout
from hip_engine.gfx942.disassembly import Instruction
from hip_engine.gfx942.emit import FLOATS, V, Value, like, scalar_of, width
from hip_engine.gfx942.isa.operands import pure, scaled
from hip_engine.gfx942.isa.table import define
from hip_engine.gfx942.isa.vector_packed import packed
from hip_engine.gfx942.wave import Wave

# Mantissa bits, exponent bias, least normal exponent.
FORMAT = {"half": (10, 15), "float": (23, 127), "double": (52, 1023)}


def fadd(w, x, y):
    return w.op("fadd", x, y)


def fsub(w, x, y):
    return w.op("fsub", x, y)


def fmul(w, x, y):
    return w.op("fmul", x, y)


def fma(w, x, y, z):
    """Fused multiply-add. Halves: the product is exact in f32, the sum is rounded to odd there."""
    if scalar_of(x.ty) != "half":
        return w.fma(x, y, z)
    wide = like(x.ty, "float")
    x, y, z = (w.cast("fpext", v, wide) for v in (x, y, z))
    return w.cast("fptrunc", add_to_odd(w, w.op("fmul", x, y), z), like(wide, "half"))


def add_to_odd(w: Wave, x: Value, y: Value) -> Value:
    """x + y rounded to odd (Boldo and Melquiond), so that rounding again to half is safe."""
    total = fadd(w, x, y)
    back = fsub(w, total, x)
    error = fadd(w, fsub(w, x, fsub(w, total, back)), fsub(w, y, back))
    inexact = w.fcmp("one", error, w.const(error.ty, 0.0))
    opposite = w.icmp("slt", w.op("xor", bits_of(w, total), bits_of(w, error)), zero_bits(w, x))
    return w.select(inexact, odd_below(w, total, opposite), total)


def odd_below(w: Wave, x: Value, too_large: Value) -> Value:
    """Truncate x toward zero where rounding enlarged it, then make its last bit odd."""
    bits = bits_of(w, x)
    truncated = w.op("sub", bits, w.cast("zext", too_large, bits.ty))
    return w.cast("bitcast", w.op("or", truncated, w.const(bits.ty, 1)), x.ty)


def narrow(w: Wave, x: Value, ty: str) -> Value:
    """Round a double to float or half, once (half through float rounded to odd)."""
    if scalar_of(ty) != "half":
        return w.cast("fptrunc", x, ty)
    single = w.cast("fptrunc", x, like(ty, "float"))
    back = w.cast("fpext", single, x.ty)
    larger = w.fcmp("ogt", w.intrinsic("fabs", back), w.intrinsic("fabs", x))
    inexact = w.op(
        "and",
        w.fcmp("one", back, x),
        w.fcmp("one", w.intrinsic("fabs", single), w.const(single.ty, float("inf"))),
    )
    return w.cast("fptrunc", w.select(inexact, odd_below(w, single, larger), single), ty)


def fmin(w, x, y):
    """The number if one is NaN; -0 below +0 (IEEE 754-2019 minimumNumber)."""
    return w.intrinsic("minimumnum", x, y)


def fmax(w, x, y):
    return w.intrinsic("maximumnum", x, y)


def fmed3(w, x, y, z):
    """Median; if any input is NaN, the minimum of the three (ISA manual, V_MED3_F32)."""
    low, high = fmin(w, x, y), fmax(w, x, y)
    middle = fmax(w, low, fmin(w, high, z))
    nan = w.fcmp("uno", x, y)
    nan = w.op("or", nan, w.fcmp("uno", z, z))
    return w.select(nan, fmin(w, low, z), middle)


def three(function):
    return lambda w, x, y, z: function(w, function(w, x, y), z)


def legacy(w, x, y, product):
    """DX9 rule: zero times anything is zero."""
    zero = w.const(x.ty, 0.0)
    either = w.op("or", w.fcmp("oeq", x, zero), w.fcmp("oeq", y, zero))
    return w.select(either, zero, product)


def unary(name):
    return lambda w, x: w.intrinsic(name, x)


def fract(w, x):
    """x - floor(x), at most the largest value below 1."""
    part = fsub(w, x, w.intrinsic("floor", x))
    bits, bias = FORMAT[scalar_of(x.ty)]
    below = w.const(x.ty, 1.0 - 2.0 ** -(bits + 1))
    capped = w.select(w.fcmp("ogt", part, below), below, part)
    infinite = w.fcmp("oeq", w.intrinsic("fabs", x), w.const(x.ty, float("inf")))
    return w.select(infinite, w.const(x.ty, float("nan")), capped)


# Exponents.


def bits_of(w: Wave, x: Value) -> Value:
    return w.cast("bitcast", x, like(x.ty, f"i{width(x.ty)}"))


def zero_bits(w: Wave, x: Value) -> Value:
    return w.const(like(x.ty, f"i{width(x.ty)}"), 0)


def biased_exponent(w: Wave, x: Value) -> Value:
    mantissa, bias = FORMAT[scalar_of(x.ty)]
    bits = w.op("lshr", bits_of(w, x), w.const(like(x.ty, f"i{width(x.ty)}"), mantissa))
    return w.op("and", bits, w.const(bits.ty, 2 * bias + 1))


def is_subnormal(w: Wave, x: Value) -> Value:
    zero_exponent = w.icmp("eq", biased_exponent(w, x), zero_bits(w, x))
    return w.op("and", zero_exponent, w.fcmp("one", x, w.const(x.ty, 0.0)))


def ldexp(w: Wave, x: Value, n: Value) -> Value:
    """x * 2^n with one rounding: through double for narrow types, in two odd steps for double."""
    if scalar_of(x.ty) == "double":
        return _ldexp_double(w, x, n)
    wide = w.cast("fpext", x, V("double"))
    n = w.intrinsic("smax", n, w.const(n.ty, -400))
    n = w.intrinsic("smin", n, w.const(n.ty, 400))
    return narrow(w, fmul(w, wide, power_of_two(w, n)), x.ty)


def power_of_two(w: Wave, n: Value) -> Value:
    """2^n as double for n in [-1022, 1023]."""
    biased = w.cast("sext", w.op("add", n, w.const(n.ty, 1023)), V("i64"))
    return w.cast("bitcast", w.op("shl", biased, w.const(V("i64"), 52)), V("double"))


def _ldexp_double(w: Wave, x: Value, n: Value) -> Value:
    """Normalise, bound the exponent, then scale so that only the last product rounds."""
    n = w.intrinsic("smax", n, w.const(n.ty, -10000))
    zero = w.const(n.ty, 0)
    tiny = is_subnormal(w, x)
    x = w.select(tiny, fmul(w, x, w.const(x.ty, 2.0**54)), x)
    n = w.op("sub", n, w.select(tiny, w.const(n.ty, 54), zero))
    exponent = w.op("sub", w.cast("trunc", biased_exponent(w, x), n.ty), w.const(n.ty, 1023))
    limits = w.const(n.ty, 2200), w.const(n.ty, -2200)
    n = w.intrinsic("smax", w.intrinsic("smin", n, limits[0]), limits[1])
    target = w.op("add", exponent, n)
    # Move to exponent max(target, -1000) exactly, then multiply by the rest, which may round.
    first = w.intrinsic(
        "smin", w.intrinsic("smax", target, w.const(n.ty, -1000)), w.const(n.ty, 1023)
    )
    bits = bits_of(w, x)
    delta = w.cast("sext", w.op("sub", first, exponent), V("i64"))
    moved = w.op("add", bits, w.op("shl", delta, w.const(V("i64"), 52)))
    rest = w.op("sub", target, first)
    rest = w.intrinsic("smax", w.intrinsic("smin", rest, w.const(n.ty, 1000)), w.const(n.ty, -1000))
    value = fmul(w, w.cast("bitcast", moved, x.ty), power_of_two(w, rest))
    special = w.icmp("eq", biased_exponent(w, x), w.const(V("i64"), 2047))
    keep = w.op("or", special, w.fcmp("oeq", x, w.const(x.ty, 0.0)))
    return w.select(keep, x, value)


def frexp_mantissa(w: Wave, x: Value) -> Value:
    """Significand in [0.5, 1); zero, infinity and NaN unchanged."""
    ty = x.ty
    mantissa, bias = FORMAT[scalar_of(ty)]
    scale = w.const(ty, 2.0 ** (mantissa + 1))
    x2 = w.select(is_subnormal(w, x), fmul(w, x, scale), x)
    word = like(ty, f"i{width(ty)}")
    clear = ~((2 * bias + 1) << mantissa)
    kept = w.op("and", bits_of(w, x2), w.const(word, clear))
    bits = w.op("or", kept, w.const(word, (bias - 1) << mantissa))
    return w.select(_unscalable(w, x), x, w.cast("bitcast", bits, ty))


def frexp_exponent(w: Wave, x: Value) -> Value:
    """Exponent that goes with frexp_mantissa; 0 for zero, infinity and NaN."""
    ty = x.ty
    mantissa, bias = FORMAT[scalar_of(ty)]
    tiny = is_subnormal(w, x)
    x2 = w.select(tiny, fmul(w, x, w.const(ty, 2.0 ** (mantissa + 1))), x)
    raw = biased_exponent(w, x2)
    out = like(ty, "i16" if scalar_of(ty) == "half" else "i32")
    raw = w.cast("trunc", raw, out)
    exponent = w.op("sub", raw, w.const(out, bias - 1))
    less = w.select(tiny, w.const(out, mantissa + 1), w.const(out, 0))
    exponent = w.op("sub", exponent, less)
    return w.select(_unscalable(w, x), w.const(out, 0), exponent)


def _unscalable(w: Wave, x: Value) -> Value:
    _, bias = FORMAT[scalar_of(x.ty)]
    top = w.icmp("eq", biased_exponent(w, x), w.const(like(x.ty, f"i{width(x.ty)}"), 2 * bias + 1))
    return w.op("or", top, w.fcmp("oeq", x, w.const(x.ty, 0.0)))


# Transcendentals.


def flush(w: Wave, x: Value) -> Value:
    """f32 subnormals to a zero of their sign."""
    if scalar_of(x.ty) != "float":
        return x
    zero = w.intrinsic("copysign", w.const(x.ty, 0.0), x)
    return w.select(is_subnormal(w, x), zero, x)


def through_double(function):
    """Evaluate in double and round once."""

    def emit(w: Wave, x: Value) -> Value:
        wide = function(w, w.cast("fpext", flush(w, x), V("double")))
        return flush(w, narrow(w, wide, x.ty))

    return emit


def rcp(w, x):
    return w.op("fdiv", w.const(x.ty, 1.0), x)


def rsq(w, x):
    return w.op("fdiv", w.const(x.ty, 1.0), w.intrinsic("sqrt", x))


def libm(name):
    """A double-precision function of the runtime applied to each lane."""

    def emit(w: Wave, x: Value) -> Value:
        temp = w.pointer("%w", layout.TEMP)
        w.store(x, temp, 64)
        w.call("void", f"lanes_{name}", temp)
        return w.load(V("double"), temp, 64)

    return emit


for _suffix, _ty in (("f32", "float"), ("f16", "half")):
    define(
        (
            (f"v_rcp_{_suffix}", pure(f"{_ty} {_ty}", through_double(rcp))),
            (f"v_rsq_{_suffix}", pure(f"{_ty} {_ty}", through_double(rsq))),
            (f"v_sqrt_{_suffix}", pure(f"{_ty} {_ty}", through_double(unary("sqrt")))),
            (f"v_exp_{_suffix}", pure(f"{_ty} {_ty}", through_double(libm("exp2")))),
            (f"v_log_{_suffix}", pure(f"{_ty} {_ty}", through_double(libm("log2")))),
            (f"v_sin_{_suffix}", pure(f"{_ty} {_ty}", through_double(libm("sin_turns")))),
            (f"v_cos_{_suffix}", pure(f"{_ty} {_ty}", through_double(libm("cos_turns")))),
        )
    )
define(
    (
        ("v_rcp_iflag_f32", pure("float float", through_double(rcp))),
        ("v_exp_legacy_f32", pure("float float", through_double(libm("exp2")))),
        ("v_log_legacy_f32", pure("float float", through_double(libm("log2")))),
        ("v_rcp_f64", pure("double double", rcp)),
        ("v_rsq_f64", pure("double double", rsq)),
        ("v_sqrt_f64", pure("double double", unary("sqrt"))),
    )
)

# Arithmetic of every width.
for _suffix, _ty in (("f16", "half"), ("f32", "float"), ("f64", "double")):
    _1, _2, _3 = (" ".join([_ty] * n) for n in (2, 3, 4))
    define(
        (
            (f"v_add_{_suffix}", pure(_2, fadd)),
            (f"v_mul_{_suffix}", pure(_2, fmul)),
            (f"v_fma_{_suffix}", pure(_3, fma)),
            (f"v_min_{_suffix}", pure(_2, fmin)),
            (f"v_max_{_suffix}", pure(_2, fmax)),
            (f"v_floor_{_suffix}", pure(_1, unary("floor"))),
            (f"v_ceil_{_suffix}", pure(_1, unary("ceil"))),
            (f"v_trunc_{_suffix}", pure(_1, unary("trunc"))),
            (f"v_rndne_{_suffix}", pure(_1, unary("roundeven"))),
            (f"v_fract_{_suffix}", pure(_1, fract)),
            (f"v_frexp_mant_{_suffix}", pure(_1, frexp_mantissa)),
        )
    )
for _suffix, _ty in (("f16", "half"), ("f32", "float")):
    _2, _3 = " ".join([_ty] * 3), " ".join([_ty] * 4)
    define(
        (
            (f"v_sub_{_suffix}", pure(_2, fsub)),
            (f"v_subrev_{_suffix}", pure(_2, lambda w, x, y: fsub(w, y, x))),
            (f"v_min3_{_suffix}", pure(_3, three(fmin))),
            (f"v_max3_{_suffix}", pure(_3, three(fmax))),
            (f"v_med3_{_suffix}", pure(_3, fmed3)),
        )
    )
define(
    (
        ("v_fmac_f32", pure("float float float float", fma, accumulate=True)),
        ("v_fmac_f64", pure("double double double double", fma, accumulate=True)),
        ("v_fmaak_f32", pure("float float float float", fma)),
        ("v_fmamk_f32", pure("float float float float", fma)),
        (
            "v_mul_legacy_f32",
            pure("float float float", lambda w, x, y: legacy(w, x, y, fmul(w, x, y))),
        ),
        ("v_mad_f16", pure("half half half half", lambda w, x, y, z: fadd(w, fmul(w, x, y), z))),
        (
            "v_mac_f16",
            pure(
                "half half half half", lambda w, x, y, z: fadd(w, fmul(w, x, y), z), accumulate=True
            ),
        ),
        ("v_ldexp_f32", pure("float float i32", ldexp)),
        ("v_ldexp_f64", pure("double double i32", ldexp)),
        (
            "v_ldexp_f16",
            pure("half half i16", lambda w, x, n: ldexp(w, x, w.cast("sext", n, V("i32")))),
        ),
        ("v_frexp_exp_i32_f32", pure("i32 float", frexp_exponent)),
        ("v_frexp_exp_i32_f64", pure("i32 double", frexp_exponent)),
        ("v_frexp_exp_i16_f16", pure("i16 half", frexp_exponent)),
        ("v_pk_fmac_f16", packed("half", fma, 2, accumulate=True)),
        ("v_pk_add_f16", packed("half", fadd, 2)),
        ("v_pk_mul_f16", packed("half", fmul, 2)),
        ("v_pk_fma_f16", packed("half", fma, 3)),
        ("v_pk_min_f16", packed("half", fmin, 2)),
        ("v_pk_max_f16", packed("half", fmax, 2)),
    )
)


def packed_f32(function, sources: int):
    """VOP3P on two f32: op_sel and op_sel_hi pick the dword of each 64-bit source."""

    def emit(w: Wave, inst: Instruction) -> None:
        outs = []
        selects = (inst.bits("op_sel", (0,) * sources), inst.bits("op_sel_hi", (1,) * sources))
        negates = (inst.bits("neg_lo", (0,) * sources), inst.bits("neg_hi", (0,) * sources))
        for picks, minus in zip(selects, negates, strict=True):
            values = []
            for position in range(sources):
                row = _packed_dword(w, inst.operands[1 + position], picks[position])
                value = w.flush_input(w.cast("bitcast", row, V("float")))
                values.append(w.neg(value) if minus[position] else value)
            outs.append(scaled(w, inst, function(w, *values)))
        for part, value in enumerate(outs):
            w.set_vgpr(inst.operands[0], value, part)

    return emit


def _packed_dword(w: Wave, operand, pick: int) -> Value:
    if operand.kind in ("v", "a"):
        return w.vgpr(operand, pick)
    if operand.kind == "s":
        return w.splat(w.sgpr(operand.index + pick))
    return w.splat(w.scalar(operand, "i32"))


define(
    (
        ("v_pk_add_f32", packed_f32(fadd, 2)),
        ("v_pk_mul_f32", packed_f32(fmul, 2)),
        ("v_pk_fma_f32", packed_f32(fma, 3)),
    )
)


assert set(FORMAT) == set(FLOATS)
