"""SMEM: scalar loads, stores and atomics, from an address or through a buffer descriptor."""

from hip_engine.gfx942.disassembly import Instruction, Operand
from hip_engine.gfx942.emit import Value
from hip_engine.gfx942.isa.memory_ops import ATOMICS, LDS_ONLY
from hip_engine.gfx942.isa.table import opcode
from hip_engine.gfx942.wave import EXEC, Wave

DWORDS = {"dword": 1, "dwordx2": 2, "dwordx4": 4, "dwordx8": 8, "dwordx16": 16}
INTEGER_ATOMICS = [name for name in ATOMICS if "_" not in name and name not in LDS_ONLY]


def _where(w: Wave, inst: Instruction, buffer: bool) -> list[Value]:
    """The address, or the descriptor's first register and the offset into its buffer."""
    _, base, *offset = inst.operands
    w.check_sgprs(base.index, 4 if buffer else 2)
    if not buffer:
        return [_address(w, base, offset, inst.number("offset"))]
    w.effects.add("saddress", base.index, 4)
    total = w.const("i32", inst.number("offset"))
    for part in offset:
        total = w.op("add", total, w.scalar(part))
    return [w.const("i32", base.index), total]


def _address(w: Wave, base: Operand, offset: list[Operand], constant: int) -> Value:
    address = w.sgpr(base.index, 64, "saddress")
    for part in offset:
        if part.kind == "s":
            address = w.op(
                "add", address, w.cast("zext", w.sgpr(part.index, 32, "saddress"), "i64")
            )
        else:
            constant += int(part.value)
    return w.op("add", address, w.const("i64", constant))


def _load(dwords: int, buffer: bool):
    def emit(w: Wave, inst: Instruction) -> None:
        """Dwords past num_records of a buffer read 0."""
        first = inst.operands[0].index
        where = _where(w, inst, buffer)
        w.check_sgprs(first, dwords)
        w.effects.add("sresult", first, dwords)
        function = "scalar_buffer_load" if buffer else "scalar_load"
        w.runtime(function, *where, w.const("i32", first), w.const("i32", dwords))
        if first + dwords > EXEC:
            w.begin_block()

    return emit


def _store(dwords: int, buffer: bool):
    def emit(w: Wave, inst: Instruction) -> None:
        first = inst.operands[0].index
        where = _where(w, inst, buffer)
        w.check_sgprs(first, dwords)
        w.effects.add("sread", first, dwords)
        function = "scalar_buffer_store" if buffer else "scalar_store"
        w.runtime(function, *where, w.const("i32", first), w.const("i32", dwords))

    return emit


def _atomic(number: int, dwords: int, buffer: bool):
    def emit(w: Wave, inst: Instruction) -> None:
        """With glc the old value replaces the data."""
        first = inst.operands[0].index
        where = _where(w, inst, buffer)
        sources = dwords * (1 + (ATOMICS[number] == "cmpswap"))
        w.check_sgprs(first, sources)
        w.effects.add("sread", first, sources)
        if inst.flag("glc"):
            w.effects.add("sresult", first, dwords)
        codes = (first, number, dwords, inst.flag("glc"))
        function = "scalar_buffer_atomic" if buffer else "scalar_atomic"
        w.runtime(function, *where, *(w.const("i32", code) for code in codes))
        if first + dwords > EXEC:
            w.begin_block()

    return emit


for _buffer, _prefix in ((False, "s_"), (True, "s_buffer_")):
    for _suffix, _dwords in DWORDS.items():
        opcode(f"{_prefix}load_{_suffix}")(_load(_dwords, _buffer))
        if _dwords <= 4:
            opcode(f"{_prefix}store_{_suffix}")(_store(_dwords, _buffer))
    for _name in INTEGER_ATOMICS:
        for _dwords, _suffix in ((1, ""), (2, "_x2")):
            _number = ATOMICS.index(_name)
            opcode(f"{_prefix}atomic_{_name}{_suffix}")(_atomic(_number, _dwords, _buffer))
