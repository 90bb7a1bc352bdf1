"""SOPC and SOPK: scalar comparisons into SCC, and instructions with a 16-bit constant."""

from hip_engine.gfx942.disassembly import Instruction
from hip_engine.gfx942.emit import width
from hip_engine.gfx942.isa.scalar import overflow
from hip_engine.gfx942.isa.table import opcode
from hip_engine.gfx942.wave import Wave

CONDITIONS = {"eq": "eq", "lg": "ne", "gt": "gt", "ge": "ge", "lt": "lt", "le": "le"}


def _compare(predicate: str, ty: str):
    def emit(w: Wave, inst: Instruction) -> None:
        x, y = (w.scalar(o, ty) for o in inst.operands)
        w.set_scc(w.icmp(predicate, x, y))

    return emit


def _compare_immediate(predicate: str, signed: bool):
    def emit(w: Wave, inst: Instruction) -> None:
        value = int(inst.operands[1].value) & 0xFFFF
        value = value - 0x10000 if signed and value & 0x8000 else value
        w.set_scc(w.icmp(predicate, w.sgpr(inst.operands[0].index), w.const("i32", value)))

    return emit


for _name, _predicate in CONDITIONS.items():
    for _sign in "iu":
        _full = (
            _predicate if _predicate in ("eq", "ne") else {"i": "s", "u": "u"}[_sign] + _predicate
        )
        opcode(f"s_cmp_{_name}_{_sign}32")(_compare(_full, "i32"))
        opcode(f"s_cmpk_{_name}_{_sign}32")(_compare_immediate(_full, _sign == "i"))
opcode("s_cmp_eq_u64")(_compare("eq", "i64"))
opcode("s_cmp_lg_u64")(_compare("ne", "i64"))


def _bit_compare(ty: str, wanted: int):
    def emit(w: Wave, inst: Instruction) -> None:
        n = w.op("and", w.scalar(inst.operands[1]), w.const("i32", width(ty) - 1))
        n = w.cast("zext", n, ty) if ty == "i64" else n
        bit = w.cast("trunc", w.op("lshr", w.scalar(inst.operands[0], ty), n), "i1")
        w.set_scc(bit if wanted else w.invert(bit))

    return emit


for _bits in (32, 64):
    for _wanted in (0, 1):
        opcode(f"s_bitcmp{_wanted}_b{_bits}")(_bit_compare(f"i{_bits}", _wanted))


def _immediate(inst: Instruction) -> int:
    value = int(inst.operands[1].value) & 0xFFFF
    return value - 0x10000 if value & 0x8000 else value


@opcode("s_movk_i32")
def _movk(w: Wave, inst: Instruction) -> None:
    w.set_sgpr(inst.operands[0].index, w.const("i32", _immediate(inst)))


@opcode("s_cmovk_i32")
def _cmovk(w: Wave, inst: Instruction) -> None:
    old = w.sgpr(inst.operands[0].index)
    w.set_sgpr(inst.operands[0].index, w.select(w.scc, w.const("i32", _immediate(inst)), old))


@opcode("s_addk_i32")
def _addk(w: Wave, inst: Instruction) -> None:
    x, y = w.sgpr(inst.operands[0].index), w.const("i32", _immediate(inst))
    value = w.op("add", x, y)
    bit = overflow("add")(w, x, y, value)
    w.set_sgpr(inst.operands[0].index, value)
    w.set_scc(bit)


@opcode("s_mulk_i32")
def _mulk(w: Wave, inst: Instruction) -> None:
    x = w.sgpr(inst.operands[0].index)
    w.set_sgpr(inst.operands[0].index, w.op("mul", x, w.const("i32", _immediate(inst))))
