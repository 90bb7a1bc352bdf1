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
SCALARS = 102  # s0 to s101: VCC, M0 and EXEC are not indexed


def _names(w: Wave, which: Operand) -> frozenset[str]:
    """Operands that gpr_idx(...) names."""
    names = frozenset(n for n in str(which.value)[8:-1].split(",") if n)
    if not names <= {"SRC0", "DST"}:
        raise w.unsupported(f"indexing of {', '.join(sorted(names))}")
    return names


@opcode("s_set_gpr_idx_on")
def _on(w: Wave, inst: Instruction) -> None:
    """M0[7:0] = index, M0[15:12] = which operands it is added to."""
    index, which = inst.operands
    names = _names(w, which)
    _set_index(w, w.scalar(index), sum(MODES[name] for name in names))
    w.indexed = names


@opcode("s_set_gpr_idx_mode")
def _mode(w: Wave, inst: Instruction) -> None:
    """Other operands, the same index, while indexing is on."""
    names = _names(w, inst.operands[0])
    if not w.indexed:
        raise w.unsupported("a change of register indexing where it is off")
    _set_index(w, w.sgpr(M0), sum(MODES[name] for name in names))
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


def _number(w: Wave, first: int, mask: int) -> Value:
    return w.op("add", w.op("and", w.sgpr(M0), w.const("i32", mask)), w.const("i32", first))


def _pointer(w: Wave, number: Value, begin: int, stride: int) -> Value:
    offset = w.op("mul", w.cast("zext", number, "i64"), w.const("i64", stride))
    offset = w.op("add", offset, w.const("i64", begin))
    return w.let("ptr", f"getelementptr i8, ptr %w, i64 {offset.name}")


def _row(w: Wave, operand: Operand, name: str) -> Value:
    """Pointer to a register, moved by the index where this operand is indexed."""
    if name not in w.indexed:
        return w.pointer("%w", w.row(operand))
    if operand.kind != "v":
        raise w.unsupported("indexing of an operand that is no vector register")
    number = _number(w, operand.index, 0xFF)
    codes = [w.const("i32", code) for code in (LAST_ROW + 1, False, name == "DST")]
    w.runtime("indexed_register", number, *codes)
    held = w.intrinsic("umin", number, w.const("i32", LAST_ROW))  # no lane is active: any register
    return _pointer(w, held, layout.VGPR, layout.ROW_BYTES)


def _scalar_move(bits: int, indexed: str):
    """s_movrels and s_movreld: the source, or the destination, is M0 registers further on."""

    def emit(w: Wave, inst: Instruction) -> None:
        dst, source = inst.operands
        moved = source if indexed == "source" else dst
        if moved.kind != "s":
            raise w.unsupported("indexing of an operand that is no scalar register")
        number = _number(w, moved.index, 0xFFFFFFFF)
        for part in range(bits // 32):
            here = w.op("add", number, w.const("i32", part))
            codes = [w.const("i32", code) for code in (SCALARS, True, indexed != "source")]
            w.runtime("indexed_register", here, *codes)
        pointer = _pointer(w, number, layout.SGPR, 4)
        if indexed == "source":
            w.set_sgpr(dst.index, w.load(f"i{bits}", pointer, 4))
        else:
            w.store(w.scalar(source, f"i{bits}"), pointer, 4)

    return emit


for _bits in (32, 64):
    opcode(f"s_movrels_b{_bits}")(_scalar_move(_bits, "source"))
    opcode(f"s_movreld_b{_bits}")(_scalar_move(_bits, "destination"))


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
