"""Register indexing by M0: between s_set_gpr_idx_on and _off, v_mov_b32 adds M0[7:0] to a register
number. It is how compilers read and write arrays that live in registers.
"""

from hip_engine.gfx942 import layout
from hip_engine.gfx942.disassembly import Instruction, Operand
from hip_engine.gfx942.emit import V, Value
from hip_engine.gfx942.isa import vector_integer  # noqa: F401  (defines the move wrapped here)
from hip_engine.gfx942.isa.table import OPCODES, opcode
from hip_engine.gfx942.wave import LAST_ROW, M0, Wave

MODES = {"SRC0": 1, "SRC1": 2, "SRC2": 4, "DST": 8}


@opcode("s_set_gpr_idx_on")
def _on(w: Wave, inst: Instruction) -> None:
    """M0[7:0] = index, M0[15:12] = which operands it is added to."""
    index, which = inst.operands
    names = frozenset(str(which.value)[8:-1].split(","))
    if not names <= {"SRC0", "DST"}:
        raise w.unsupported(f"indexing of {', '.join(sorted(names))}")
    _set_index(w, w.scalar(index), sum(MODES[name] for name in names))
    w.indexed = names


@opcode("s_set_gpr_idx_idx")
def _change(w: Wave, inst: Instruction) -> None:
    _set_index(w, w.scalar(inst.operands[0]), sum(MODES[name] for name in w.indexed))


@opcode("s_set_gpr_idx_off")
def _off(w: Wave, inst: Instruction) -> None:
    w.indexed = frozenset()


def _set_index(w: Wave, index: Value, mode: int) -> None:
    kept = w.op("and", w.sgpr(M0), w.const("i32", ~0xF0FF))
    low = w.op("and", index, w.const("i32", 0xFF))
    w.set_sgpr(M0, w.op("or", w.op("or", kept, low), w.const("i32", mode << 12)))


def _row(w: Wave, operand: Operand, name: str) -> Value:
    """Pointer to a register, moved by the index where this operand is indexed."""
    if name not in w.indexed:
        return w.pointer("%w", w.row(operand))
    if operand.kind != "v":
        raise w.unsupported("indexing of an operand that is no vector register")
    index = w.op("and", w.sgpr(M0), w.const("i32", 0xFF))
    number = w.op("add", index, w.const("i32", operand.index))
    number = w.cast("zext", w.intrinsic("umin", number, w.const("i32", LAST_ROW)), "i64")
    offset = w.op("mul", number, w.const("i64", layout.ROW_BYTES))
    offset = w.op("add", offset, w.const("i64", layout.VGPR))
    return w.let("ptr", f"getelementptr i8, ptr %w, i64 {offset.name}")


_plain_move = OPCODES.pop("v_mov_b32")


@opcode("v_mov_b32")
def _move(w: Wave, inst: Instruction) -> None:
    if not w.indexed:
        return _plain_move(w, inst)
    dst, source = inst.operands
    indexed = "SRC0" in w.indexed
    value = w.load(V("i32"), _row(w, source, "SRC0"), 64) if indexed else w.vector(source, "i32")
    pointer = _row(w, dst, "DST")
    old = w.load(V("i32"), pointer, 64)
    w.store(w.select(w.exec, value, old), pointer, 64)
    if "DST" not in w.indexed:
        w.effects.add("write", w.number(dst), 1)
    return None
