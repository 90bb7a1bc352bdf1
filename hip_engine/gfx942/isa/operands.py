"""Vector ALU operands: input modifiers, SDWA selects, DPP lane moves, clamp and output scaling."""

from collections.abc import Callable

from hip_engine.gfx942.disassembly import Instruction, Operand
from hip_engine.gfx942.emit import FLOATS, V, Value, scalar_of, width
from hip_engine.gfx942.isa.table import Emitter
from hip_engine.gfx942.wave import Wave

SDWA_SELECT = {
    "BYTE_0": (0, 8),
    "BYTE_1": (8, 8),
    "BYTE_2": (16, 8),
    "BYTE_3": (24, 8),
    "WORD_0": (0, 16),
    "WORD_1": (16, 16),
    "DWORD": (0, 32),
}

# 16-bit VOP3 results that keep the upper half of the destination (LLVM zeroesHigh16BitsOfDest).
KEEPS_HIGH_HALF = {
    "v_fma_f16",
    "v_mad_f16",
    "v_mad_u16",
    "v_mad_i16",
    "v_div_fixup_f16",
    "v_max3_f16",
    "v_min3_f16",
    "v_med3_f16",
}


def source(w: Wave, inst: Instruction, position: int, ty: str, index: int) -> Value:
    """Source operand number `index` (0 based) as lanes of `ty`, every modifier applied."""
    operand = inst.operands[position]
    if index == 0 and is_dpp(inst):
        value = _typed(w, dpp_row(w, inst, operand, ty), ty)
    elif f"src{index}_sel" in inst.modifiers:
        value = _typed(w, _sdwa_source(w, inst, operand, index), ty)
    elif width(ty) == 16 and inst.bits("op_sel", (0, 0, 0, 0))[index : index + 1] == (1,):
        row = w.vector(operand, "i32")
        value = _typed(w, w.op("lshr", row, w.const(row.ty, 16)), ty)
    else:
        value = w.vector(operand, ty)
    return modified(w, operand, value)


def modified(w: Wave, operand: Operand, value: Value) -> Value:
    """The denormal mode, abs, then neg, on floating-point lanes."""
    if scalar_of(value.ty) in FLOATS:
        value = w.flush_input(value)
        if operand.absolute:
            value = w.intrinsic("fabs", value)
        if operand.negate:
            value = w.neg(value)
    elif operand.negate or operand.absolute:
        raise w.unsupported("neg or abs on an integer operand")
    return value


def _typed(w: Wave, row: Value, ty: str) -> Value:
    bits = width(ty)
    if width(row.ty) > bits:
        row = w.cast("trunc", row, V(f"i{bits}"))
    return w.cast("bitcast", row, V(ty))


def _sdwa_source(w: Wave, inst: Instruction, operand: Operand, index: int) -> Value:
    shift, bits = SDWA_SELECT[inst.modifiers[f"src{index}_sel"]]
    row = w.vector(operand, "i32")
    if bits == 32:
        return row
    row = w.op("shl", row, w.const(row.ty, 32 - bits - shift))
    return w.op("ashr" if operand.signed else "lshr", row, w.const(row.ty, 32 - bits))


# DPP.

DPP_NAMES = (
    "quad_perm",
    "row_shl",
    "row_shr",
    "row_ror",
    "wave_shl",
    "wave_rol",
    "wave_shr",
    "wave_ror",
    "row_mirror",
    "row_half_mirror",
    "row_bcast",
    "row_newbcast",
)


def is_dpp(inst: Instruction) -> bool:
    return any(name in inst.modifiers for name in DPP_NAMES)


def dpp_order(inst: Instruction) -> list[int | None]:
    """For each lane the lane it reads, or None where it reads outside its row or wave."""
    name = next(n for n in DPP_NAMES if n in inst.modifiers)
    text = inst.modifiers[name]
    if name == "quad_perm":
        quad = inst.bits("quad_perm", (0, 1, 2, 3))
        return [4 * (i // 4) + quad[i % 4] for i in range(64)]
    n = int(text, 0) if text else 0
    within = {
        "row_shl": lambda r: r + n,
        "row_shr": lambda r: r - n,
        "row_ror": lambda r: (r - n) % 16,
        "row_mirror": lambda r: 15 - r,
        "row_half_mirror": lambda r: 8 * (r // 8) + 7 - r % 8,
        "row_newbcast": lambda r: n,
    }
    if name in within:
        lanes = [(i, within[name](i % 16)) for i in range(64)]
        return [16 * (i // 16) + r if 0 <= r < 16 else None for i, r in lanes]
    if name == "row_bcast":
        if n == 15:
            return [16 * (i // 16) - 1 if i >= 16 else None for i in range(64)]
        return [31 if i >= 32 else None for i in range(64)]
    step = {"wave_shl": 1, "wave_rol": 1, "wave_shr": -1, "wave_ror": -1}[name]
    lanes = [i + step for i in range(64)]
    if name in ("wave_rol", "wave_ror"):
        return [i % 64 for i in lanes]
    return [i if 0 <= i < 64 else None for i in lanes]


def dpp_row(w: Wave, inst: Instruction, operand: Operand, ty: str) -> Value:
    """Source 0 moved across lanes; lanes with nothing to read get 0 (they may not be written)."""
    order = [i if i is not None else 0 for i in dpp_order(inst)]
    row = w.vector(operand, "i64" if width(ty) == 64 else "i32")
    moved = w.lanes(row, order)
    return w.select(dpp_readable(w, inst), moved, w.const(row.ty, 0))


def dpp_readable(w: Wave, inst: Instruction) -> Value:
    """Lanes whose source lane exists and is active."""
    order = dpp_order(inst)
    exists = _constant_mask(w, [i is not None for i in order])
    return w.op("and", w.lanes(w.exec, [i or 0 for i in order]), exists)


def write_mask(w: Wave, inst: Instruction) -> Value | None:
    """Lanes that a DPP instruction writes, or None for plain EXEC."""
    if not is_dpp(inst):
        return None
    rows, banks = inst.number("row_mask", 15), inst.number("bank_mask", 15)
    mask = w.exec
    if (rows, banks) != (15, 15):
        lanes = [bool(rows >> (i // 16) & 1 and banks >> (i % 16 // 4) & 1) for i in range(64)]
        mask = w.op("and", mask, _constant_mask(w, lanes))
    if not inst.flag("bound_ctrl"):
        mask = w.op("and", mask, dpp_readable(w, inst))
    return mask


def _constant_mask(w: Wave, lanes: list[bool]) -> Value:
    bits = sum(1 << i for i, on in enumerate(lanes) if on)
    return w.cast("bitcast", w.const("i64", bits), V("i1"))


# Results.


def scaled(w: Wave, inst: Instruction, value: Value) -> Value:
    """Output modifiers of floating-point results: omod, then clamp to [0, 1]; NaN clamps to 0.
    The denormal mode comes last.
    """
    for name, table in (("mul", {"2": 2.0, "4": 4.0}), ("div", {"2": 0.5})):
        if name in inst.modifiers:
            value = w.op("fmul", value, w.const(value.ty, table[inst.modifiers[name]]))
    if inst.flag("clamp"):
        zero, one = w.const(value.ty, 0.0), w.const(value.ty, 1.0)
        above = w.select(w.fcmp("ogt", value, zero), value, zero)
        value = w.select(w.fcmp("olt", above, one), above, one)
    return w.flush_output(value)


def result(w: Wave, inst: Instruction, value: Value, sources: int) -> None:
    """Write a vector ALU result to operand 0 through SDWA, op_sel and DPP write controls."""
    dst = inst.operands[0]
    mask = write_mask(w, inst)
    if "dst_sel" in inst.modifiers and inst.modifiers["dst_sel"] != "DWORD":
        value = _sdwa_result(w, inst, value)
    elif width(value.ty) == 16:
        high = inst.bits("op_sel", (0,) * (sources + 1))[sources:] == (1,)
        if high or inst.base in KEEPS_HIGH_HALF:
            value = _merge(w, w.old(dst), value, 16 if high else 0)
    w.write(dst, value, mask)


def _merge(w: Wave, old: Value, value: Value, shift: int) -> Value:
    bits = width(value.ty)
    word = w.cast("zext", w.cast("bitcast", value, V(f"i{bits}")), V("i32"))
    hole = w.op("and", old, w.const(old.ty, ~(((1 << bits) - 1) << shift)))
    return w.op("or", hole, w.op("shl", word, w.const(old.ty, shift)))


def _sdwa_result(w: Wave, inst: Instruction, value: Value) -> Value:
    shift, bits = SDWA_SELECT[inst.modifiers["dst_sel"]]
    word = w.cast("bitcast", value, V(f"i{width(value.ty)}"))
    if width(word.ty) < 32:
        word = w.cast("zext", word, V("i32"))
    part = w.cast("trunc", word, V(f"i{bits}"))
    unused = inst.modifiers.get("dst_unused", "UNUSED_PAD")
    if unused == "UNUSED_PRESERVE":
        return _merge(w, w.old(inst.operands[0]), part, shift)
    kind = "sext" if unused == "UNUSED_SEXT" else "zext"
    wide = w.cast(kind, part, V("i32"))
    return w.op("shl", wide, w.const(wide.ty, shift))


def pure(
    types: str, function: Callable[..., Value], *, accumulate: bool = False, clamp=None
) -> Emitter:
    """A vector ALU instruction that is a function of its lanes.

    Args:
      types: result type, then one type a source ("float float float").
      function: (wave, *sources) -> value of the result type.
      accumulate: the old destination is the last source (v_fmac and the like).
      clamp: integer saturation, (wave, *sources) -> value, used where the clamp bit is set.
    """
    out, *ins = types.split()

    def emit(w: Wave, inst: Instruction) -> None:
        named = len(ins) - accumulate
        values = [source(w, inst, 1 + i, t, i) for i, t in enumerate(ins[:named])]
        if accumulate:
            values.append(w.flush_input(w.vector(inst.operands[0], ins[-1])))
        if out in FLOATS:
            value = scaled(w, inst, function(w, *values))
        elif inst.flag("clamp"):
            if clamp is None:
                raise w.unsupported("clamp on this integer instruction")
            value = clamp(w, *values)
        else:
            value = function(w, *values)
        assert value.ty == V(out), (inst.text, value.ty)
        result(w, inst, value, len(ins))

    return emit
