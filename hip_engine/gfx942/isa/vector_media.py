"""Sums of absolute differences over sliding bytes, saturating packs, cube maps, and 2/pi."""

from hip_engine.gfx942 import layout
from hip_engine.gfx942.disassembly import Instruction
from hip_engine.gfx942.emit import V, Value
from hip_engine.gfx942.isa.operands import pure, result, source
from hip_engine.gfx942.isa.table import define, opcode
from hip_engine.gfx942.isa.vector_convert import halves_of, to_integer
from hip_engine.gfx942.isa.vector_divide import div_fixup
from hip_engine.gfx942.isa.vector_dot import masked_sad
from hip_engine.gfx942.isa.vector_float import biased_exponent, fadd, fma, fmul
from hip_engine.gfx942.isa.vector_integer import sad_u8
from hip_engine.gfx942.wave import Wave


def _slices(w: Wave, x: Value) -> list[Value]:
    """Bytes n to n+3 of a qword, for n = 0 to 3."""
    parts = [w.op("lshr", x, w.const(x.ty, 8 * n)) for n in range(4)]
    return [w.cast("trunc", part, V("i32")) for part in parts]


def _quad_sad(sad):
    """Four sums against the same four bytes, each truncated to 16 bits (V_QSAD_PK_U16_U8)."""

    def emit(w: Wave, x: Value, y: Value, z: Value) -> Value:
        out = w.const(x.ty, 0)
        for n, part in enumerate(_slices(w, x)):
            addend = w.op("lshr", z, w.const(z.ty, 16 * n))
            addend = w.op("and", addend, w.const(z.ty, 0xFFFF))
            total = w.cast("zext", sad(w, part, y, w.cast("trunc", addend, V("i32"))), x.ty)
            total = w.op("and", total, w.const(x.ty, 0xFFFF))
            out = w.op("or", out, w.op("shl", total, w.const(x.ty, 16 * n)))
        return out

    return emit


opcode("v_qsad_pk_u16_u8")(pure("i64 i64 i32 i64", _quad_sad(sad_u8)))
opcode("v_mqsad_pk_u16_u8")(pure("i64 i64 i32 i64", _quad_sad(masked_sad)))


@opcode("v_mqsad_u32_u8")
def _quad_sad_wide(w: Wave, inst: Instruction) -> None:
    """Four masked sums with 32-bit addends."""
    if inst.flag("clamp"):
        raise w.unsupported("clamp on this integer instruction")
    dst, x, y, z = inst.operands
    slices, reference = _slices(w, w.vector(x, "i64")), w.vector(y, "i32")
    addends = [
        w.vgpr(z, n) if z.kind in ("v", "a") else w.splat(w.sgpr(z.index + n)) for n in range(4)
    ]
    totals = [masked_sad(w, s, reference, a) for s, a in zip(slices, addends, strict=True)]
    for n, total in enumerate(totals):
        w.set_vgpr(dst, total, n)


# Packs.


def _saturated_bytes(w: Wave, x: Value) -> Value:
    """v_sat_pk_u8_i16: two signed halves to bytes."""
    parts = []
    for shift in (16, 0):
        half = w.op("ashr", w.op("shl", x, w.const(x.ty, shift)), w.const(x.ty, 16))
        half = w.intrinsic("smax", half, w.const(x.ty, 0))
        parts.append(w.intrinsic("smin", half, w.const(x.ty, 255)))
    return w.op("or", parts[0], w.op("shl", parts[1], w.const(x.ty, 8)))


def _insert_byte(w: Wave, x: Value, place: Value, old: Value) -> Value:
    """`old` with x, rounded by MODE and saturated, as its byte number place[1:0]."""
    byte = w.intrinsic("umin", to_integer("u", 32)(w, w.intrinsic("rint", x)), _dword(w, 255))
    shift = w.op("shl", w.op("and", place, _dword(w, 3)), _dword(w, 3))
    hole = w.invert(w.op("shl", _dword(w, 255), shift))
    return w.op("or", w.op("and", old, hole), w.op("shl", byte, shift))


def _dword(w: Wave, value: int) -> Value:
    return w.const(V("i32"), value)


@opcode("v_cvt_pkaccum_u8_f32")
def _accumulate_byte(w: Wave, inst: Instruction) -> None:
    x, place = source(w, inst, 1, "float", 0), source(w, inst, 2, "i32", 1)
    result(w, inst, _insert_byte(w, x, place, w.vgpr(inst.operands[0])), 2)


def _normal(kind: str):
    """f16 to a normalised 16-bit integer: scaled exactly, rounded once, saturated; NaN gives 0."""
    scale = 32767.0 if kind == "i" else 65535.0

    def emit(w: Wave, x: Value) -> Value:
        wide = w.cast("fpext", x, V("double"))
        wide = w.intrinsic("rint", fmul(w, wide, w.const(wide.ty, scale)))
        number = w.select(w.fcmp("uno", wide, wide), w.const(wide.ty, 0.0), wide)
        low = w.const(wide.ty, -scale if kind == "i" else 0.0)
        number = w.intrinsic("maximumnum", number, low)
        return to_integer(kind, 16)(w, w.intrinsic("minimumnum", number, w.const(wide.ty, scale)))

    return emit


def _packed_normal(kind: str):
    def emit(w: Wave, inst: Instruction) -> None:
        parts = [_normal(kind)(w, source(w, inst, 1 + i, "half", i)) for i in (0, 1)]
        w.write(inst.operands[0], halves_of(w, *parts))

    return emit


define(
    (
        ("v_sat_pk_u8_i16", pure("i32 i32", _saturated_bytes)),
        ("v_cvt_pk_u8_f32", pure("i32 float i32 i32", _insert_byte)),
        ("v_cvt_norm_i16_f16", pure("i16 half", _normal("i"))),
        ("v_cvt_norm_u16_f16", pure("i16 half", _normal("u"))),
        ("v_cvt_pknorm_i16_f16", _packed_normal("i")),
        ("v_cvt_pknorm_u16_f16", _packed_normal("u")),
    )
)


# Halves whose result clears the upper half of the destination, and with a literal.


def _mad(w: Wave, x: Value, y: Value, z: Value) -> Value:
    return fadd(w, fmul(w, x, y), z)


for _name, _function in (
    ("v_mad_legacy_f16", _mad),
    ("v_madak_f16", _mad),
    ("v_madmk_f16", _mad),
    ("v_fma_legacy_f16", fma),
    ("v_div_fixup_legacy_f16", div_fixup),
):
    opcode(_name)(pure("half half half half", _function))


# Cube maps: the face is that of the largest coordinate, z before y before x.


def _cube(z_major, y_major, x_major):
    """Each argument gives (value where the coordinate is negative, value where it is not)."""

    def emit(w: Wave, x: Value, y: Value, z: Value) -> Value:
        size = [w.intrinsic("fabs", v) for v in (x, y, z)]

        def pick(major, coordinate):
            below = w.fcmp("olt", coordinate, w.const(coordinate.ty, 0.0))
            return w.select(below, *major(w, x, y, z))

        is_z = w.op("and", w.fcmp("oge", size[2], size[0]), w.fcmp("oge", size[2], size[1]))
        rest = w.select(w.fcmp("oge", size[1], size[0]), pick(y_major, y), pick(x_major, x))
        return w.select(is_z, pick(z_major, z), rest)

    return pure("float float float float", emit)


def _face(number: int):
    pair = (float(number + 1), float(number))
    return lambda w, x, y, z: [w.const(x.ty, v) for v in pair]


def _twice(axis: int):
    return lambda w, *v: [fadd(w, v[axis], v[axis])] * 2


def _signed(below: int, above: int):
    """Coordinates by 1-based number, a minus sign for their negative."""

    def emit(w, *v):
        return [w.neg(v[-n - 1]) if n < 0 else v[n - 1] for n in (below, above)]

    return emit


opcode("v_cubeid_f32")(_cube(_face(4), _face(2), _face(0)))
opcode("v_cubema_f32")(_cube(_twice(2), _twice(1), _twice(0)))
opcode("v_cubesc_f32")(_cube(_signed(-1, 1), _signed(1, 1), _signed(3, -3)))
opcode("v_cubetc_f32")(_cube(_signed(-2, -2), _signed(-3, 3), _signed(-2, -2)))


def _two_over_pi(w: Wave, x: Value, segment: Value) -> Value:
    """v_trig_preop_f64: 53 bits of 2/pi from bit 53 * segment (and the exponent of a large x) on,
    scaled up by 2^128 for the largest x (ISA manual).
    """
    exponent = w.cast("trunc", biased_exponent(w, x), V("i32"))
    first = w.op("mul", w.op("and", segment, _dword(w, 31)), _dword(w, 53))
    beyond = w.intrinsic("usub.sat", exponent, _dword(w, 1077))
    large = w.cast("zext", w.icmp("uge", exponent, _dword(w, 1968)), V("i32"))
    word = w.op("add", w.op("add", first, beyond), w.op("shl", large, _dword(w, 16)))
    temp = w.pointer("%w", layout.TEMP)
    w.store(word, temp, 64)
    w.call("void", "lanes_two_over_pi", temp)
    return w.load(V("double"), temp, 64)


opcode("v_trig_preop_f64")(pure("double double i32", _two_over_pi))
