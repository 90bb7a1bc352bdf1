"""MUBUF: buffer loads, stores and atomics through a descriptor in four SGPRs.

Address = base + soffset + offset + voffset + stride * index; what lies outside the buffer reads 0
and is not written. Swizzled and typed (format) buffers are refused by name.
"""

from hip_engine.gfx942.disassembly import Instruction, Operand
from hip_engine.gfx942.emit import Value
from hip_engine.gfx942.isa.lanes import row_index
from hip_engine.gfx942.isa.memory_ops import ATOMICS, LDS_ONLY, LOADS, SCALAR_DWORDS, STORES
from hip_engine.gfx942.isa.table import opcode
from hip_engine.gfx942.wave import Wave

OFFEN, IDXEN = 1, 2


def _address(w: Wave, inst: Instruction, operands: list[Operand]) -> list[Value]:
    """(address row, flags, first SGPR of the descriptor, uniform offset)."""
    vaddr, descriptor, soffset = operands
    flags = OFFEN * inst.flag("offen") | IDXEN * inst.flag("idxen")
    row = row_index(w, vaddr, "address") if vaddr.kind == "v" else w.const("i32", -1)
    w.effects.add("saddress", descriptor.index, 4)
    offset = w.op("add", w.scalar(soffset), w.const("i32", inst.number("offset")))
    return [row, w.const("i32", flags), w.const("i32", descriptor.index), offset]


def _load(name: str):
    def emit(w: Wave, inst: Instruction) -> None:
        if inst.flag("lds"):
            if name != "b32":
                raise w.unsupported("only dword buffer loads go straight to LDS")
            address = _address(w, inst, list(inst.operands))
            w.runtime("buffer_to_lds", *address, w.const("i32", inst.number("offset")))
            return
        dst, *rest = inst.operands
        address = _address(w, inst, rest)
        w.runtime(f"buffer_load_{name}", *address, row_index(w, dst, "result"))

    return emit


def _store(name: str):
    def emit(w: Wave, inst: Instruction) -> None:
        data, *rest = inst.operands
        address = _address(w, inst, rest)
        w.runtime(f"buffer_store_{name}", *address, row_index(w, data, "read"))

    return emit


def _atomic(number: int, dwords: int):
    def emit(w: Wave, inst: Instruction) -> None:
        data, *rest = inst.operands
        returns = inst.flag("sc0") or inst.flag("glc")
        address = _address(w, inst, rest)
        source = row_index(w, data, "read")
        dst = row_index(w, data, "result") if returns else w.const("i32", -1)
        code = [w.const("i32", number), w.const("i32", dwords)]
        w.runtime("buffer_atomic", *address, source, dst, *code)

    return emit


for _suffix, _name in LOADS.items():
    opcode(f"buffer_load_{_suffix}")(_load(_name))
for _suffix, _name in STORES.items():
    opcode(f"buffer_store_{_suffix}")(_store(_name))
for _number, _name in enumerate(ATOMICS):
    if _name in LDS_ONLY or _name == "pk_add_bf16":  # which buffers of this chip do not have
        continue
    _dwords = 2 if _name.endswith("f64") else 1
    opcode(f"buffer_atomic_{_name}")(_atomic(_number, _dwords))
    if "_" not in _name:
        opcode(f"buffer_atomic_{_name}_x2")(_atomic(_number, 2))


def _scalar_load(dwords: int):
    def emit(w: Wave, inst: Instruction) -> None:
        """s_buffer_load: dwords past num_records read 0."""
        dst, descriptor, *offset = inst.operands
        total = w.const("i32", inst.number("offset"))
        for part in offset:
            total = w.op("add", total, w.scalar(part))
        w.effects.add("saddress", descriptor.index, 4)
        w.check_sgprs(dst.index, dwords)
        w.check_sgprs(descriptor.index, 4)
        w.effects.add("sresult", dst.index, dwords)
        where = [w.const("i32", descriptor.index), total]
        w.runtime("scalar_buffer_load", *where, w.const("i32", dst.index), w.const("i32", dwords))
        if dst.index + dwords > 126:
            w.begin_block()

    return emit


for _suffix, _dwords in SCALAR_DWORDS.items():
    opcode(f"s_buffer_load_{_suffix}")(_scalar_load(_dwords))


@opcode("global_load_lds_dword")
def _global_to_lds(w: Wave, inst: Instruction) -> None:
    """Lane i loads a dword to LDS at M0 + offset + 4 * i."""
    vaddr, *rest = inst.operands
    base = w.const("i64", inst.number("offset"))
    wide = w.const("i32", 1)
    if rest and rest[0].kind == "s":
        base = w.op("add", w.sgpr(rest[0].index, 64, "saddress"), base)
        wide = w.const("i32", 0)
    row = row_index(w, vaddr, "address")
    w.effects.add("sread", 124, 1)
    w.runtime("global_to_lds", row, wide, base, w.const("i32", inst.number("offset")))
