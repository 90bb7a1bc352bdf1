"""Instructions that cross lanes or register files: readlane, writelane, accvgpr, ds_permute."""

from hip_engine.gfx942.disassembly import Instruction, Operand
from hip_engine.gfx942.emit import Value
from hip_engine.gfx942.isa.operands import pure
from hip_engine.gfx942.isa.table import opcode
from hip_engine.gfx942.wave import EXEC, Wave


def _lane_pointer(w: Wave, row: int, lane: Value) -> Value:
    lane = w.cast("zext", w.op("and", lane, w.const("i32", 63)), "i64")
    offset = w.op("add", w.op("mul", lane, w.const("i64", 4)), w.const("i64", row))
    return w.let("ptr", f"getelementptr i8, ptr %w, i64 {offset.name}")


@opcode("v_readfirstlane_b32")
def _readfirstlane(w: Wave, inst: Instruction) -> None:
    """The lowest active lane, or lane 0 when EXEC is 0."""
    mask = w.sgpr(EXEC, 64)
    first = w.cast("trunc", w.intrinsic("cttz", mask, w.const("i1", 0)), "i32")
    w.effects.add("first_lane", w.number(inst.operands[1]), 1)
    pointer = _lane_pointer(w, w.row(inst.operands[1]), first)  # cttz(0) = 64 wraps to lane 0
    w.set_sgpr(inst.operands[0].index, w.load("i32", pointer, 4))


@opcode("v_readlane_b32")
def _readlane(w: Wave, inst: Instruction) -> None:
    """EXEC does not matter."""
    dst, src, lane = inst.operands
    w.effects.add("some_lane", w.number(src), 1)
    pointer = _lane_pointer(w, w.row(src), w.scalar(lane))
    w.set_sgpr(dst.index, w.load("i32", pointer, 4))


@opcode("v_writelane_b32")
def _writelane(w: Wave, inst: Instruction) -> None:
    """EXEC does not matter."""
    dst, value, lane = inst.operands
    w.effects.add("lane_write", w.number(dst), 1)
    w.store(w.scalar(value), _lane_pointer(w, w.row(dst), w.scalar(lane)), 4)


for _name in ("v_accvgpr_read_b32", "v_accvgpr_write_b32", "v_accvgpr_mov_b32"):
    opcode(_name)(pure("i32 i32", lambda w, x: x))


def row_index(w: Wave, operand: Operand, role: str) -> Value:
    """Register number for the runtime, and how the instruction uses the registers of the operand:
    read, address (a read whose value must be defined), result (written by the runtime)."""
    w.effects.add(role, w.number(operand), operand.count)
    return w.const("i32", w.number(operand))


def _permute(function: str):
    def emit(w: Wave, inst: Instruction) -> None:
        dst, address, data = inst.operands
        pairs = ((dst, "write"), (address, "address"), (data, "read"))
        rows = [row_index(w, o, role) for o, role in pairs]
        w.runtime(function, *rows, w.const("i32", inst.number("offset")))

    return emit


opcode("ds_bpermute_b32")(_permute("lds_bpermute"))
opcode("ds_permute_b32")(_permute("lds_permute"))


@opcode("ds_swizzle_b32")
def _swizzle(w: Wave, inst: Instruction) -> None:
    """Lane shuffle by a pattern in the offset; inactive source lanes read 0."""
    offset = swizzle_pattern(w, inst.modifiers["offset"])
    if offset & 0x8000:
        quad = [(offset >> (2 * i)) & 3 for i in range(4)]
        order = [4 * (i // 4) + quad[i % 4] for i in range(64)]
    else:
        keep, flip, turn = offset & 31, (offset >> 10) & 31, (offset >> 5) & 31
        order = [32 * (i // 32) + (((i % 32 & keep) | turn) ^ flip) for i in range(64)]
    row = w.vgpr(inst.operands[1])
    active = w.lanes(w.exec, order)
    value = w.select(active, w.lanes(row, order), w.const(row.ty, 0))
    w.set_vgpr(inst.operands[0], value)


def swizzle_pattern(w: Wave, text: str) -> int:
    """The 16-bit pattern of offset:swizzle(...) as LLVM prints it, or of a plain number."""
    if not text.startswith("swizzle("):
        return int(text, 0)
    mode, *args = (a.strip().strip('"') for a in text[8:-1].split(","))
    if mode == "QUAD_PERM":
        return 0x8000 | sum(int(a) << (2 * i) for i, a in enumerate(args))
    if mode == "SWAP":
        return 0x1F | int(args[0]) << 10
    if mode == "REVERSE":
        return 0x1F | (int(args[0]) - 1) << 10
    if mode == "BROADCAST":
        return (0x1F & -int(args[0])) | int(args[1]) << 5
    if mode == "BITMASK_PERM":
        keep = turn = flip = 0
        for c in args[0]:
            keep, turn, flip = (2 * v for v in (keep, turn, flip))
            keep += c in "pi"
            turn += c == "1"
            flip += c == "i"
        return keep | turn << 5 | flip << 10
    raise w.unsupported(f"swizzle mode {mode}")
