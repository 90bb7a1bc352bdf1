"""Packed 16-bit integers, carries between lanes and masks, and 64-bit multiply-adds."""

from hip_engine.gfx942.disassembly import Instruction
from hip_engine.gfx942.emit import V, Value
from hip_engine.gfx942.isa.operands import result, source, write_mask
from hip_engine.gfx942.isa.table import define, opcode
from hip_engine.gfx942.isa.vector_integer import (
    add,
    ashr,
    lshr,
    mul,
    shl,
    smax,
    smin,
    sub,
    umax,
    umin,
)
from hip_engine.gfx942.wave import Wave


def packed(ty: str, function, named: int, accumulate: bool = False):
    """VOP3P on two 16-bit halves, each half picked by op_sel (low result) and op_sel_hi (high)."""
    sources = named + accumulate

    def emit(w: Wave, inst: Instruction) -> None:
        operands = [*inst.operands[1 : 1 + named], *inst.operands[: 1 if accumulate else 0]]
        rows = [w.two_halves(o) for o in operands]
        low_pick = inst.bits("op_sel", (0,) * sources)
        high_pick = inst.bits("op_sel_hi", (1,) * sources)
        negates = (inst.bits("neg_lo", (0,) * sources), inst.bits("neg_hi", (0,) * sources))
        halves = []
        for picks, negate in zip((low_pick, high_pick), negates, strict=True):
            values = []
            for row, pick, minus in zip(rows, picks, negate, strict=True):
                part = w.op("lshr", row, w.const(row.ty, 16)) if pick else row
                value = w.cast("bitcast", w.cast("trunc", part, V("i16")), V(ty))
                value = w.flush_input(value)
                values.append(w.neg(value) if minus else value)
            out = function(w, *values)
            if inst.flag("clamp"):
                out = _packed_clamp(w, out, ty)
            out = w.flush_output(out)
            halves.append(w.cast("zext", w.cast("bitcast", out, V("i16")), V("i32")))
        up = w.op("shl", halves[1], w.const(V("i32"), 16))
        w.set_vgpr(inst.operands[0], w.op("or", up, halves[0]))

    return emit


def _packed_clamp(w: Wave, value: Value, ty: str) -> Value:
    if ty != "half":
        raise w.unsupported("clamp on packed integers")
    zero, one = w.const(value.ty, 0.0), w.const(value.ty, 1.0)
    above = w.select(w.fcmp("ogt", value, zero), value, zero)
    return w.select(w.fcmp("olt", above, one), above, one)


define(
    (
        ("v_pk_add_u16", packed("i16", add, 2)),
        ("v_pk_add_i16", packed("i16", add, 2)),
        ("v_pk_sub_u16", packed("i16", sub, 2)),
        ("v_pk_sub_i16", packed("i16", sub, 2)),
        ("v_pk_mul_lo_u16", packed("i16", mul, 2)),
        ("v_pk_mad_u16", packed("i16", lambda w, x, y, z: add(w, mul(w, x, y), z), 3)),
        ("v_pk_mad_i16", packed("i16", lambda w, x, y, z: add(w, mul(w, x, y), z), 3)),
        ("v_pk_min_i16", packed("i16", smin, 2)),
        ("v_pk_max_i16", packed("i16", smax, 2)),
        ("v_pk_min_u16", packed("i16", umin, 2)),
        ("v_pk_max_u16", packed("i16", umax, 2)),
        ("v_pk_lshlrev_b16", packed("i16", lambda w, n, x: shl(w, x, n), 2)),
        ("v_pk_lshrrev_b16", packed("i16", lambda w, n, x: lshr(w, x, n), 2)),
        ("v_pk_ashrrev_i16", packed("i16", lambda w, n, x: ashr(w, x, n), 2)),
    )
)


def _pk_mov(w: Wave, inst: Instruction) -> None:
    """v_pk_mov_b32: low = src0[op_sel[0]], high = src1[op_sel[1]] (dwords of 64-bit sources)."""
    picks = inst.bits("op_sel", (0, 0))
    rows = []
    for operand, pick in zip(inst.operands[1:3], picks, strict=True):
        pair = w.vector(operand, "i64")
        rows.append(w.halves(pair)[pick])
    w.set_vgpr(inst.operands[0], rows[0], 0)
    w.set_vgpr(inst.operands[0], rows[1], 1)


opcode("v_pk_mov_b32")(_pk_mov)


# Carries: the carry of every lane goes to a lane mask.


def carry(form: str):
    """v_{add,sub,subrev}_co and v_{addc,subb,subbrev}_co: 32-bit result and a carry mask."""

    def emit(w: Wave, inst: Instruction) -> None:
        if inst.flag("clamp"):
            raise w.unsupported("clamp on this integer instruction")
        x, y = source(w, inst, 2, "i32", 0), source(w, inst, 3, "i32", 1)
        if "rev" in form:
            x, y = y, x
        x64, y64 = w.cast("zext", x, V("i64")), w.cast("zext", y, V("i64"))
        opcode = "add" if form.startswith("add") else "sub"
        wide = w.op(opcode, x64, y64)
        if form in ("addc", "subb", "subbrev"):
            bit = w.cast("zext", w.mask(inst.operands[4]), V("i64"))
            wide = w.op(opcode, wide, bit)
        high = w.op("lshr", wide, w.const(wide.ty, 32))
        overflow = w.icmp("ne", high, w.const(wide.ty, 0))
        w_low = w.cast("trunc", wide, V("i32"))
        written = write_mask(w, inst) or w.exec
        result(w, inst, w_low, 2)
        w.set_mask(inst.operands[1].index, w.op("and", overflow, written))

    return emit


for _form in ("add", "sub", "subrev"):
    opcode(f"v_{_form}_co_u32")(carry(_form))
for _form in ("addc", "subb", "subbrev"):
    opcode(f"v_{_form}_co_u32")(carry(_form))


def _mad_64_32(kind: str):
    def emit(w: Wave, inst: Instruction) -> None:
        """vdst = src0 * src1 + src2 in 64 bits, the carry out to an SGPR pair."""
        x, y = (w.cast(kind, w.vector(o, "i32"), V("i64")) for o in inst.operands[2:4])
        product, z = w.op("mul", x, y), w.vector(inst.operands[4], "i64")
        total = w.op("add", product, z)
        overflow = w.icmp("ult", total, z)
        if kind == "sext":
            signed = [w.icmp("slt", v, w.const(v.ty, 0)) for v in (product, z, total)]
            same = w.invert(w.op("xor", signed[0], signed[1]))
            overflow = w.op("and", same, w.op("xor", signed[1], signed[2]))
        w.write(inst.operands[0], total)
        w.set_mask(inst.operands[1].index, overflow)

    return emit


opcode("v_mad_u64_u32")(_mad_64_32("zext"))
opcode("v_mad_i64_i32")(_mad_64_32("sext"))
