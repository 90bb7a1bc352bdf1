"""Dot products, byte sums of differences, and 8-bit floating-point conversions."""

from hip_engine.gfx942.disassembly import Instruction
from hip_engine.gfx942.emit import V, Value
from hip_engine.gfx942.isa.operands import modified, pure, result, scaled, source
from hip_engine.gfx942.isa.table import define, opcode
from hip_engine.gfx942.isa.vector_float import fma
from hip_engine.gfx942.wave import Wave


def field(w: Wave, x: Value, position: int, bits: int, kind: str) -> Value:
    """Bits [position*bits, +bits) of a dword, zero- or sign-extended."""
    up = w.op("shl", x, w.const(x.ty, 32 - bits * (position + 1)))
    return w.op("ashr" if kind == "i" else "lshr", up, w.const(x.ty, 32 - bits))


def _integer_dot(kind: str, bits: int):
    """Sum of products of packed integers, plus the accumulator; clamp saturates."""

    def products(w: Wave, x: Value, y: Value) -> list[Value]:
        parts = range(32 // bits)
        return [w.op("mul", field(w, x, p, bits, kind), field(w, y, p, bits, kind)) for p in parts]

    def plain(w: Wave, x: Value, y: Value, z: Value) -> Value:
        total = z
        for product in products(w, x, y):
            total = w.op("add", total, product)
        return total

    def saturated(w: Wave, x: Value, y: Value, z: Value) -> Value:
        extend = "sext" if kind == "i" else "zext"
        total = w.cast(extend, z, V("i64"))
        for product in products(w, x, y):
            total = w.op("add", total, w.cast(extend, product, V("i64")))
        if kind == "u":
            total = w.intrinsic("umin", total, w.const(total.ty, 2**32 - 1))
        else:
            total = w.intrinsic("smax", total, w.const(total.ty, -(2**31)))
            total = w.intrinsic("smin", total, w.const(total.ty, 2**31 - 1))
        return w.cast("trunc", total, V("i32"))

    return plain, saturated


for _kind, _bits, _name in (
    ("i", 16, "dot2_i32_i16"),
    ("u", 16, "dot2_u32_u16"),
    ("i", 8, "dot4_i32_i8"),
    ("u", 8, "dot4_u32_u8"),
    ("i", 4, "dot8_i32_i4"),
    ("u", 4, "dot8_u32_u4"),
):
    _plain, _saturated = _integer_dot(_kind, _bits)
    opcode(f"v_{_name}")(pure("i32 i32 i32 i32", _plain, clamp=_saturated))
    if _kind == "i":
        _short = _name.replace("_", "c_", 1)
        opcode(f"v_{_short}")(pure("i32 i32 i32 i32", _plain, accumulate=True, clamp=_saturated))


def _half(w: Wave, x: Value, position: int) -> Value:
    bits = w.cast("trunc", w.op("lshr", x, w.const(x.ty, 16 * position)), V("i16"))
    return w.cast("bitcast", bits, V("half"))


def dot2_f16(w: Wave, x: Value, y: Value, z: Value) -> Value:
    """z + x0*y0, then + x1*y1, in f32; the products of halves are exact (ISA manual). Subnormal
    addends and results become 0 in every mode (LLVM, SIISelLowering performFMACombine).
    """
    total = _flushed(w, z)
    for position in (0, 1):
        a, b = (w.cast("fpext", _half(w, v, position), V("float")) for v in (x, y))
        total = fma(w, a, b, total)
    return _flushed(w, total)


def _flushed(w: Wave, x: Value) -> Value:
    tiny = w.fcmp("olt", w.intrinsic("fabs", x), w.const(x.ty, 2.0**-126))
    return w.select(tiny, w.intrinsic("copysign", w.const(x.ty, 0.0), x), x)


@opcode("v_dot2_f32_f16")
def _dot2_f32_f16(w: Wave, inst: Instruction) -> None:
    x, y = (w.two_halves(o) for o in inst.operands[1:3])
    negates = (inst.bits("neg_lo", (0, 0, 0)), inst.bits("neg_hi", (0, 0, 0)))
    if negates[1][2]:
        raise w.unsupported("neg_hi of an addend that has one part")
    flips = [
        (0x8000 if negates[0][i] else 0) | (0x80000000 if negates[1][i] else 0) for i in range(2)
    ]
    x, y = (
        w.op("xor", v, w.const(v.ty, f)) if f else v for v, f in zip((x, y), flips, strict=True)
    )
    z = modified(w, inst.operands[3], w.vector(inst.operands[3], "float"))
    z = w.neg(z) if negates[0][2] else z
    w.write(inst.operands[0], scaled(w, inst, dot2_f16(w, x, y, z)))


opcode("v_dot2c_f32_f16")(pure("float i32 i32 float", dot2_f16, accumulate=True))


# Sums of absolute differences.


def _absolute_difference(w: Wave, x: Value, y: Value) -> Value:
    low, high = w.intrinsic("umin", x, y), w.intrinsic("umax", x, y)
    return w.op("sub", high, low)


def _sad(bits: int, shift: int = 0):
    def emit(w: Wave, x: Value, y: Value, z: Value) -> Value:
        total = w.const(x.ty, 0)
        for p in range(32 // bits):
            a, b = field(w, x, p, bits, "u"), field(w, y, p, bits, "u")
            total = w.op("add", total, _absolute_difference(w, a, b))
        return w.op("add", w.op("shl", total, w.const(total.ty, shift)), z)

    return emit


def masked_sad(w: Wave, x: Value, y: Value, z: Value) -> Value:
    """Bytes whose reference (src1) is 0 do not count."""
    total = z
    for p in range(4):
        a, b = field(w, x, p, 8, "u"), field(w, y, p, 8, "u")
        difference = _absolute_difference(w, a, b)
        counts = w.icmp("ne", b, w.const(b.ty, 0))
        total = w.op("add", total, w.select(counts, difference, w.const(b.ty, 0)))
    return total


def _lerp(w: Wave, x: Value, y: Value, z: Value) -> Value:
    """Byte by byte (x + y + (z & 1)) >> 1."""
    out = w.const(x.ty, 0)
    for p in range(4):
        a, b = field(w, x, p, 8, "u"), field(w, y, p, 8, "u")
        one = w.op("and", field(w, z, p, 8, "u"), w.const(x.ty, 1))
        mean = w.op("lshr", w.op("add", w.op("add", a, b), one), w.const(x.ty, 1))
        out = w.op("or", out, w.op("shl", mean, w.const(x.ty, 8 * p)))
    return out


define(
    (
        ("v_sad_hi_u8", pure("i32 i32 i32 i32", _sad(8, 16))),
        ("v_sad_u16", pure("i32 i32 i32 i32", _sad(16))),
        ("v_sad_u32", pure("i32 i32 i32 i32", _sad(32))),
        ("v_msad_u8", pure("i32 i32 i32 i32", masked_sad)),
        ("v_lerp_u8", pure("i32 i32 i32 i32", _lerp)),
    )
)


# 8-bit floats (FNUZ): E4M3 with bias 8 and E5M2 with bias 16; 0x80 is NaN; no infinity, no -0.

FNUZ = {"fp8": (3, 4, 8), "bf8": (2, 5, 16)}


def from_fp8(w: Wave, byte: Value, name: str) -> Value:
    """A byte (as a dword) to f32, exactly."""
    mantissa, exponent, bias = FNUZ[name]
    i32 = byte.ty
    sign = w.op("shl", w.op("and", byte, w.const(i32, 0x80)), w.const(i32, 24))
    rest = w.op("and", byte, w.const(i32, 0x7F))
    # As an f32 of exponent `field`, then scaled: subnormals come out right by themselves.
    bits = w.op("shl", rest, w.const(i32, 23 - mantissa))
    value = w.op(
        "fmul",
        w.cast("bitcast", bits, V("float")),
        w.const(V("float"), 2.0 ** (127 - bias)),
    )
    signed = w.op("or", w.cast("bitcast", value, i32), sign)
    nan = w.icmp("eq", byte, w.const(i32, 0x80))
    return w.cast("bitcast", w.select(nan, w.const(i32, 0x7FC00000), signed), V("float"))


def _to_fp8(name: str):
    """f32 to a byte: nearest even; what overflows becomes NaN as the saturation mode is off."""
    mantissa, exponent, bias = FNUZ[name]
    drop = 23 - mantissa

    def emit(w: Wave, x: Value, noise: Value | None = None) -> Value:
        i32 = V("i32")
        bits = w.cast("bitcast", x, i32)
        sign = w.op("and", w.op("lshr", bits, w.const(i32, 24)), w.const(i32, 0x80))
        size = w.op("and", bits, w.const(i32, 0x7FFFFFFF))
        # Subnormal results: a fixed-point number of 2^(1 - bias - mantissa) units.
        field = w.op("lshr", size, w.const(i32, 23))
        significand = w.op("or", w.op("and", size, w.const(i32, 0x7FFFFF)), w.const(i32, 0x800000))
        below = w.intrinsic("smax", w.op("sub", w.const(i32, 128 - bias), field), w.const(i32, 0))
        shift = w.intrinsic("umin", w.op("add", below, w.const(i32, drop)), w.const(i32, 31))
        subnormal = w.icmp("ne", below, w.const(i32, 0))
        one = w.const(i32, 1)
        if noise is None:
            half = w.op("sub", w.op("shl", one, w.op("sub", shift, one)), one)
            odd = w.op("and", w.op("lshr", significand, shift), one)
            add = w.op("add", half, odd)
        else:  # as many random bits as are dropped, the highest first
            lost = w.op("sub", w.op("add", below, w.const(i32, drop)), shift)
            significand = w.op("lshr", significand, w.intrinsic("umin", lost, w.const(i32, 31)))
            add = w.op("lshr", noise, w.op("sub", w.const(i32, 32), shift))
        rounded = w.op("lshr", w.op("add", significand, add), shift)
        base = w.op("shl", w.op("sub", field, w.const(i32, 128 - bias)), w.const(i32, mantissa))
        base = w.select(subnormal, w.const(i32, 0), base)
        code = w.op("add", base, rounded)
        tiny = w.icmp("ult", field, w.const(i32, 1))
        code = w.select(tiny, w.const(i32, 0), code)
        over = w.icmp("ugt", code, w.const(i32, 0x7F))
        special = w.icmp("uge", size, w.const(i32, 0x7F800000))
        nan = w.op("or", over, special)
        zero = w.icmp("eq", code, w.const(i32, 0))
        value = w.select(zero, w.const(i32, 0), w.op("or", code, sign))
        return w.select(nan, w.const(i32, 0x80), value)

    return emit


def _unpack_one(name: str):
    def emit(w: Wave, inst: Instruction) -> None:
        byte = field(w, source(w, inst, 1, "i32", 0), 0, 8, "u")
        result(w, inst, scaled(w, inst, from_fp8(w, byte, name)), 1)

    return emit


def _unpack_two(name: str):
    def emit(w: Wave, inst: Instruction) -> None:
        row = source(w, inst, 1, "i32", 0)
        values = [scaled(w, inst, from_fp8(w, field(w, row, i, 8, "u"), name)) for i in (0, 1)]
        pair = w.pair(*(w.cast("bitcast", value, V("i32")) for value in values))
        result(w, inst, pair, 1)

    return emit


def _pack_two(name: str):
    def emit(w: Wave, inst: Instruction) -> None:
        """Two f32 to two bytes of one half of the destination (op_sel[2] picks the half)."""
        codes = [_to_fp8(name)(w, modified(w, o, w.vector(o, "float"))) for o in inst.operands[1:3]]
        pair = w.op("or", codes[0], w.op("shl", codes[1], w.const(V("i32"), 8)))
        high = len(bits := inst.bits("op_sel", (0, 0, 0))) > 2 and bits[-1]
        shift = 16 if high else 0
        old = w.op("and", w.old(inst.operands[0]), w.const(V("i32"), 0xFFFF << (16 - shift)))
        w.set_vgpr(inst.operands[0], w.op("or", old, w.op("shl", pair, w.const(V("i32"), shift))))

    return emit


def _stochastic(name: str):
    def emit(w: Wave, inst: Instruction) -> None:
        """One f32 to a byte, rounded by the random bits of src1; op_sel[3:2] picks the byte."""
        x = modified(w, inst.operands[1], w.vector(inst.operands[1], "float"))
        code = _to_fp8(name)(w, x, w.vector(inst.operands[2], "i32"))
        bits = inst.bits("op_sel", (0, 0, 0, 0))
        position = 8 * (bits[2] + 2 * bits[3]) if len(bits) > 3 else 0
        keep = w.const(V("i32"), ~(0xFF << position))
        old = w.op("and", w.old(inst.operands[0]), keep)
        new = w.op("or", old, w.op("shl", code, w.const(V("i32"), position)))
        w.set_vgpr(inst.operands[0], new)

    return emit


for _name in FNUZ:
    opcode(f"v_cvt_f32_{_name}")(_unpack_one(_name))
    opcode(f"v_cvt_pk_f32_{_name}")(_unpack_two(_name))
    opcode(f"v_cvt_pk_{_name}_f32")(_pack_two(_name))
    opcode(f"v_cvt_sr_{_name}_f32")(_stochastic(_name))
