"""Division steps (div_scale, div_fmas, div_fixup) and mixed-precision fused multiply-adds."""

from hip_engine.gfx942.disassembly import Instruction
from hip_engine.gfx942.emit import V, Value, like, scalar_of, width
from hip_engine.gfx942.isa.operands import modified, pure, result, scaled, source
from hip_engine.gfx942.isa.table import opcode
from hip_engine.gfx942.isa.vector_float import (
    FORMAT,
    add_to_odd,
    biased_exponent,
    bits_of,
    fadd,
    fma,
    fmul,
    fsub,
    is_subnormal,
    ldexp,
    narrow,
    power_of_two,
    rcp,
    zero_bits,
)
from hip_engine.gfx942.wave import VCC, Wave

SCALE = {"float": (64, 96, 23), "double": (128, 768, 53)}


def _div_scale(ty: str):
    def emit(w: Wave, inst: Instruction) -> None:
        """v_div_scale: bring numerator and denominator to a safe range; the mask marks lanes whose
        quotient v_div_fmas must rescale (ISA manual, V_DIV_SCALE_F32).
        """
        x, den, num = (source(w, inst, 2 + i, ty, i) for i in range(3))
        step, far, tiny_limit = SCALE[ty]
        word = V(f"i{width(ty)}")
        _, bias = FORMAT[ty]
        up = ldexp(w, x, w.const(V("i32"), step))
        down = ldexp(w, x, w.const(V("i32"), -step))
        e_num, e_den = biased_exponent(w, num), biased_exponent(w, den)
        zero = w.const(num.ty, 0.0)
        is_zero = w.op("or", w.fcmp("oeq", num, zero), w.fcmp("oeq", den, zero))
        near_max = w.icmp("sge", w.op("sub", e_num, e_den), w.const(word, far))
        small_den = is_subnormal(w, den)
        huge_den = is_subnormal(w, rcp(w, den))
        small_quotient = is_subnormal(w, w.op("fdiv", num, den))
        tiny_num = w.icmp("sle", e_num, w.const(word, tiny_limit))
        is_den = w.icmp("eq", bits_of(w, x), bits_of(w, den))
        is_num = w.icmp("eq", bits_of(w, x), bits_of(w, num))
        # Last rule first: each earlier rule of the manual overrides the ones after it.
        value = w.select(tiny_num, up, x)
        value = w.select(small_quotient, w.select(is_num, up, x), value)
        value = w.select(huge_den, down, value)
        both = w.op("and", huge_den, small_quotient)
        value = w.select(both, w.select(is_den, down, x), value)
        value = w.select(small_den, up, value)
        value = w.select(near_max, w.select(is_den, up, x), value)
        value = w.select(is_zero, w.const(x.ty, float("nan")), value)
        late = w.op("and", small_quotient, w.invert(small_den))
        flagged = w.op("and", w.op("or", near_max, late), w.invert(is_zero))
        w.write(inst.operands[0], value)
        w.set_mask(inst.operands[1].index, flagged)

    return emit


def _div_fmas(ty: str):
    def emit(w: Wave, inst: Instruction) -> None:
        """fma, times 2^step or 2^-step in the lanes of VCC, by the size of the addend."""
        x, y, z = (source(w, inst, 1 + i, ty, i) for i in range(3))
        step = SCALE[ty][0]
        _, bias = FORMAT[ty]
        value = fma(w, x, y, z)
        large = w.icmp("ugt", biased_exponent(w, z), w.const(V(f"i{width(ty)}"), bias))
        n = w.select(large, w.const(V("i32"), step), w.const(V("i32"), -step))
        vcc = w.cast("bitcast", w.sgpr(VCC, 64), V("i1"))
        rescale = _scaled_fma_f32 if ty == "float" else _scaled_fma_f64
        rescaled = rescale(w, x, y, z, n)
        result(w, inst, scaled(w, inst, w.select(vcc, rescaled, value)), 3)

    return emit


def _scaled_fma_f32(w: Wave, x: Value, y: Value, z: Value, n: Value) -> Value:
    """(x*y + z) * 2^n in f32 with one rounding, so that subnormal quotients are right too."""
    x, y, z = (w.cast("fpext", v, V("double")) for v in (x, y, z))
    total = add_to_odd(w, fmul(w, x, y), z)
    return narrow(w, fmul(w, total, power_of_two(w, n)), V("float"))


def _scaled_fma_f64(w: Wave, x: Value, y: Value, z: Value, n: Value) -> Value:
    """The same in f64. Two roundings differ from one only where the first lands on a midpoint of
    the second: there the error of the first decides. It is exact because the addend of a division
    step is the quotient but for a last correction (Sterbenz).
    """
    first = fma(w, x, y, z)
    second = ldexp(w, first, n)
    error = fma(w, x, y, fsub(w, z, first))
    rest = fsub(w, first, ldexp(w, second, w.op("sub", w.const(n.ty, 0), n)))
    least = 2.0**-1074
    half = w.const(rest.ty, 2.0 ** (SCALE["double"][0] - 1075))
    midpoint = w.fcmp("oeq", w.intrinsic("fabs", rest), half)
    same_side = w.icmp("sge", w.op("xor", bits_of(w, error), bits_of(w, rest)), zero_bits(w, rest))
    beyond = w.op("and", same_side, w.fcmp("one", error, w.const(rest.ty, 0.0)))
    step = w.intrinsic("copysign", w.const(rest.ty, least), rest)
    return w.select(w.op("and", midpoint, beyond), fadd(w, second, step), second)


def div_fixup(w: Wave, quotient: Value, den: Value, num: Value) -> Value:
    """Special cases of num / den: NaN, zeros, infinities, overflow and underflow by exponent."""
    ty, word = quotient.ty, like(quotient.ty, f"i{width(quotient.ty)}")
    _, bias = FORMAT[scalar_of(ty)]
    zero, inf = w.const(ty, 0.0), w.const(ty, float("inf"))
    signs = w.op("xor", bits_of(w, den), bits_of(w, num))
    sign = w.cast("bitcast", signs, ty)

    def signed(x):
        return w.intrinsic("copysign", x, sign)

    def is_inf(x):
        return w.fcmp("oeq", w.intrinsic("fabs", x), inf)

    value = signed(w.intrinsic("fabs", quotient))
    if scalar_of(ty) != "half":  # whose steps are in f32 and cannot lose the quotient
        gap = w.op("sub", biased_exponent(w, num), biased_exponent(w, den))
        lost = w.fcmp("uno", quotient, quotient)
        underflow = w.icmp("slt", gap, w.const(word, -(bias + 2 + FORMAT[scalar_of(ty)][0])))
        value = w.select(lost, w.select(underflow, signed(zero), signed(inf)), value)
    den_zero, num_zero = w.fcmp("oeq", den, zero), w.fcmp("oeq", num, zero)
    den_inf, num_inf = is_inf(den), is_inf(num)
    value = w.select(w.op("or", den_inf, num_zero), signed(zero), value)
    value = w.select(w.op("or", den_zero, num_inf), signed(inf), value)
    invalid = w.op("or", w.op("and", den_zero, num_zero), w.op("and", den_inf, num_inf))
    nan = w.op("or", invalid, w.fcmp("uno", den, num))
    return w.select(nan, w.const(ty, float("nan")), value)


for _suffix, _ty in (("f32", "float"), ("f64", "double")):
    opcode(f"v_div_scale_{_suffix}")(_div_scale(_ty))
    opcode(f"v_div_fmas_{_suffix}")(_div_fmas(_ty))
for _suffix, _ty in (("f16", "half"), ("f32", "float"), ("f64", "double")):
    opcode(f"v_div_fixup_{_suffix}")(pure(" ".join([_ty] * 4), div_fixup))


# Mixed precision.


def _mix_source(w: Wave, inst: Instruction, i: int) -> Value:
    """v_fma_mix source: f32, or the op_sel half of an f16 pair where op_sel_hi is set."""
    operand = inst.operands[1 + i]
    if not inst.bits("op_sel_hi", (0, 0, 0))[i]:
        return modified(w, operand, w.vector(operand, "float"))
    row = w.vector(operand, "i32")
    if inst.bits("op_sel", (0, 0, 0))[i]:
        row = w.op("lshr", row, w.const(row.ty, 16))
    half = w.cast("bitcast", w.cast("trunc", row, V("i16")), V("half"))
    return modified(w, operand, w.cast("fpext", half, V("float")))


@opcode("v_fma_mix_f32")
def _fma_mix(w: Wave, inst: Instruction) -> None:
    value = fma(w, *(_mix_source(w, inst, i) for i in range(3)))
    w.write(inst.operands[0], scaled(w, inst, value))


def _fma_mix_half(shift: int):
    def emit(w: Wave, inst: Instruction) -> None:
        """The f32 fma rounded to f16 into one half of the destination."""
        value = fma(w, *(_mix_source(w, inst, i) for i in range(3)))
        half = scaled(w, inst, w.cast("fptrunc", value, V("half")))
        bits = w.cast("zext", w.cast("bitcast", half, V("i16")), V("i32"))
        old = w.old(inst.operands[0])
        kept = w.op("and", old, w.const(old.ty, 0xFFFF << (16 - shift)))
        bits = w.op("or", kept, w.op("shl", bits, w.const(bits.ty, shift)))
        w.set_vgpr(inst.operands[0], bits)

    return emit


opcode("v_fma_mixlo_f16")(_fma_mix_half(0))
opcode("v_fma_mixhi_f16")(_fma_mix_half(16))
