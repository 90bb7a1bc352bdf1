"""Conversions between lane types, with the saturation the ISA manual gives each."""

from hip_engine.gfx942.disassembly import Instruction
from hip_engine.gfx942.emit import V, Value, scalar_of
from hip_engine.gfx942.isa.operands import modified, pure
from hip_engine.gfx942.isa.table import define, opcode
from hip_engine.gfx942.wave import Wave


def to_integer(kind: str, bits: int):
    """Truncate toward zero, saturating; NaN gives 0.

    Of a half by way of fp32, which holds it exactly: LLVM's own conversion gives -32768 for some
    NaN on an x86 with AVX512-FP16.
    """
    name = "fptoui.sat" if kind == "u" else "fptosi.sat"

    def emit(w: Wave, x: Value) -> Value:
        if scalar_of(x.ty) == "half":
            x = w.cast("fpext", x, V("float"))
        source = {"float": "f32", "double": "f64"}[scalar_of(x.ty)]
        out = V(f"i{bits}")
        return w.call(out, f"llvm.{name}.v64i{bits}.v64{source}", x)

    return emit


def from_integer(opcode_name: str, ty: str):
    return lambda w, x: w.cast(opcode_name, x, V(ty))


def _byte(position: int):
    def emit(w: Wave, x: Value) -> Value:
        part = w.op("lshr", x, w.const(x.ty, 8 * position))
        part = w.op("and", part, w.const(x.ty, 255))
        return w.cast("uitofp", part, V("float"))

    return emit


def _rounded(name: str):
    return lambda w, x: to_integer("i", 32)(w, w.intrinsic(name, x))


def _nearest_up(w: Wave, x: Value) -> Value:
    """v_cvt_rpi_i32_f32: floor(x + 0.5), the sum taken exactly."""
    wide = w.cast("fpext", x, V("double"))
    wide = w.intrinsic("floor", w.op("fadd", wide, w.const(wide.ty, 0.5)))
    return to_integer("i", 32)(w, wide)


def _off_f32_i4(w: Wave, x: Value) -> Value:
    low = w.op("ashr", w.op("shl", x, w.const(x.ty, 28)), w.const(x.ty, 28))
    return w.op("fmul", w.cast("sitofp", low, V("float")), w.const(V("float"), 0.0625))


define(
    (
        ("v_cvt_f32_i32", pure("float i32", from_integer("sitofp", "float"))),
        ("v_cvt_f32_u32", pure("float i32", from_integer("uitofp", "float"))),
        ("v_cvt_f64_i32", pure("double i32", from_integer("sitofp", "double"))),
        ("v_cvt_f64_u32", pure("double i32", from_integer("uitofp", "double"))),
        ("v_cvt_f16_i16", pure("half i16", from_integer("sitofp", "half"))),
        ("v_cvt_f16_u16", pure("half i16", from_integer("uitofp", "half"))),
        ("v_cvt_i32_f32", pure("i32 float", to_integer("i", 32))),
        ("v_cvt_u32_f32", pure("i32 float", to_integer("u", 32))),
        ("v_cvt_i32_f64", pure("i32 double", to_integer("i", 32))),
        ("v_cvt_u32_f64", pure("i32 double", to_integer("u", 32))),
        ("v_cvt_i16_f16", pure("i16 half", to_integer("i", 16))),
        ("v_cvt_u16_f16", pure("i16 half", to_integer("u", 16))),
        ("v_cvt_f32_f16", pure("float half", lambda w, x: w.cast("fpext", x, V("float")))),
        ("v_cvt_f16_f32", pure("half float", lambda w, x: w.cast("fptrunc", x, V("half")))),
        ("v_cvt_f64_f32", pure("double float", lambda w, x: w.cast("fpext", x, V("double")))),
        ("v_cvt_f32_f64", pure("float double", lambda w, x: w.cast("fptrunc", x, V("float")))),
        ("v_cvt_f32_ubyte0", pure("float i32", _byte(0))),
        ("v_cvt_f32_ubyte1", pure("float i32", _byte(1))),
        ("v_cvt_f32_ubyte2", pure("float i32", _byte(2))),
        ("v_cvt_f32_ubyte3", pure("float i32", _byte(3))),
        ("v_cvt_flr_i32_f32", pure("i32 float", _rounded("floor"))),
        ("v_cvt_rpi_i32_f32", pure("i32 float", _nearest_up)),
        ("v_cvt_off_f32_i4", pure("float i32", _off_f32_i4)),
    )
)


def halves_of(w: Wave, low: Value, high: Value) -> Value:
    low, high = (w.cast("zext", w.cast("bitcast", v, V("i16")), V("i32")) for v in (low, high))
    return w.op("or", low, w.op("shl", high, w.const(high.ty, 16)))


def toward_zero(w: Wave, x: Value) -> Value:
    """f32 to f16, truncating: round, then step back where the magnitude grew."""
    half = w.cast("fptrunc", x, V("half"))
    back = w.cast("fpext", half, V("float"))
    grew = w.fcmp("ogt", w.intrinsic("fabs", back), w.intrinsic("fabs", x))
    bits = w.cast("bitcast", half, V("i16"))
    stepped = w.op("sub", bits, w.cast("zext", grew, V("i16")))
    return w.cast("bitcast", stepped, V("half"))


@opcode("v_cvt_pkrtz_f16_f32")
def _pkrtz(w: Wave, inst: Instruction) -> None:
    x, y = (modified(w, o, w.vector(o, "float")) for o in inst.operands[1:3])
    w.write(inst.operands[0], halves_of(w, toward_zero(w, x), toward_zero(w, y)))


def _packed_normal(scale: float, kind: str):
    """v_cvt_pknorm: scale, round to nearest even, saturate to 16 bits, NaN to 0."""

    def emit(w: Wave, inst: Instruction) -> None:
        parts = []
        for operand in inst.operands[1:3]:
            x = modified(w, operand, w.vector(operand, "float"))
            x = w.select(w.fcmp("uno", x, x), w.const(x.ty, 0.0), x)
            x = w.intrinsic("roundeven", w.op("fmul", x, w.const(x.ty, scale)))
            low = -scale if kind == "i" else 0.0
            x = w.intrinsic("maximumnum", x, w.const(x.ty, low))
            parts.append(
                to_integer(kind, 16)(w, w.intrinsic("minimumnum", x, w.const(x.ty, scale)))
            )
        w.write(inst.operands[0], halves_of(w, *parts))

    return emit


opcode("v_cvt_pknorm_i16_f32")(_packed_normal(32767.0, "i"))
opcode("v_cvt_pknorm_u16_f32")(_packed_normal(65535.0, "u"))


@opcode("v_pack_b32_f16")
def _pack(w: Wave, inst: Instruction) -> None:
    picks = inst.bits("op_sel", (0, 0, 0))
    halves = []
    for operand, pick in zip(inst.operands[1:3], picks, strict=False):
        row = w.two_halves(operand)
        row = w.op("lshr", row, w.const(row.ty, 16)) if pick else row
        half = w.cast("bitcast", w.cast("trunc", row, V("i16")), V("half"))
        halves.append(modified(w, operand, half))
    w.write(inst.operands[0], halves_of(w, *halves))


def _saturated_pack(signed: bool):
    def emit(w: Wave, inst: Instruction) -> None:
        parts = []
        for operand in inst.operands[1:3]:
            x = w.vector(operand, "i32")
            if signed:
                x = w.intrinsic("smax", x, w.const(x.ty, -32768))
                x = w.intrinsic("smin", x, w.const(x.ty, 32767))
            else:
                x = w.intrinsic("umin", x, w.const(x.ty, 65535))
            parts.append(w.cast("trunc", x, V("i16")))
        w.write(inst.operands[0], halves_of(w, *parts))

    return emit


opcode("v_cvt_pk_i16_i32")(_saturated_pack(True))
opcode("v_cvt_pk_u16_u32")(_saturated_pack(False))
