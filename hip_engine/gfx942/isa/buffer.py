"""MUBUF: buffer loads, stores and atomics through a descriptor in four SGPRs.

Address = base + soffset + offset + voffset + stride * index; what lies outside the buffer reads 0
and is not written. Swizzled buffers are refused by name. Typed (format) accesses convert between
registers and the formats of 8, 16 and 32 bits a component.
"""

import re

from hip_engine.gfx942.disassembly import Instruction, Operand
from hip_engine.gfx942.emit import Value
from hip_engine.gfx942.isa.lanes import row_index
from hip_engine.gfx942.isa.memory_ops import (
    ATOMICS,
    LDS_ONLY,
    LOADS,
    STORES,
    global_address,
    scratch_address,
)
from hip_engine.gfx942.isa.table import opcode
from hip_engine.gfx942.wave import M0, Wave

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
            if name not in TO_LDS:
                raise w.unsupported("no load of this width goes straight to LDS")
            address = _address(w, inst, list(inst.operands))
            w.runtime("buffer_to_lds", *address, *direct(w, inst, name))
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


# Typed accesses.

COMPONENTS = ("x", "xy", "xyz", "xyzw")
OF_DESCRIPTOR = 128
HALVES, HIGH_HALF = 1, 2
DATA_FORMATS = (
    *("INVALID", "8", "16", "8_8", "32", "16_16", "10_11_11", "11_11_10", "10_10_10_2"),
    *("2_10_10_10", "8_8_8_8", "32_32", "16_16_16_16", "32_32_32", "32_32_32_32", "RESERVED_15"),
)
NUMBER_FORMATS = (*("UNORM", "SNORM", "USCALED", "SSCALED", "UINT", "SINT", "RESERVED_6", "FLOAT"),)


def _format(inst: Instruction) -> int:
    """Data format and, from bit 4 on, number format; LLVM leaves the default (8, UNORM) out."""
    if inst.mnemonic.startswith("buffer"):
        return OF_DESCRIPTOR
    text = inst.modifiers.get("format", "")
    data = re.search(r"BUF_DATA_FORMAT_(\w+)", text)
    number = re.search(r"BUF_NUM_FORMAT_(\w+)", text)
    return (DATA_FORMATS.index(data[1]) if data else 1) | (
        NUMBER_FORMATS.index(number[1]) if number else 0
    ) << 4


def _typed(what: str, count: int, how: int):
    def emit(w: Wave, inst: Instruction) -> None:
        if inst.flag("lds"):
            raise w.unsupported("a typed load straight to LDS")
        data, *rest = inst.operands
        address = _address(w, inst, rest)
        row = row_index(w, data, "result" if what == "load" else "read")
        codes = [w.const("i32", code) for code in (_format(inst), count, how)]
        w.runtime(f"buffer_{what}_typed", *address, row, *codes)

    return emit


for _what in ("load", "store"):
    for _count, _names in enumerate(COMPONENTS, 1):
        for _prefix in ("buffer", "tbuffer"):
            opcode(f"{_prefix}_{_what}_format_{_names}")(_typed(_what, _count, 0))
            opcode(f"{_prefix}_{_what}_format_d16_{_names}")(_typed(_what, _count, HALVES))
    opcode(f"buffer_{_what}_format_d16_hi_x")(_typed(_what, 1, HALVES | HIGH_HALF))


# Straight between memory and LDS: at M0 + offset + 4 * lane.

TO_LDS = ("b32", "u8", "i8", "u16", "i16")  # the order of transfer.h


def direct(w: Wave, inst: Instruction, name: str) -> list[Value]:
    """(offset into LDS, width) of such a load."""
    w.effects.add("saddress", M0, 1)
    return [w.const("i32", inst.number("offset")), w.const("i32", TO_LDS.index(name))]


@opcode("buffer_store_lds_dword")
def _from_lds(w: Wave, inst: Instruction) -> None:
    descriptor, soffset = inst.operands
    address = _address(w, inst, [Operand("name", value="off"), descriptor, soffset])
    w.effects.add("saddress", M0, 1)
    w.runtime("buffer_from_lds", *address, w.const("i32", inst.number("offset")))


def _global_to_lds(name: str):
    def emit(w: Wave, inst: Instruction) -> None:
        vaddr, *rest = inst.operands
        address = global_address(w, inst, vaddr, rest[0] if rest else None)
        w.runtime("global_to_lds", *address, *direct(w, inst, name))

    return emit


def _scratch_to_lds(name: str):
    def emit(w: Wave, inst: Instruction) -> None:
        address = scratch_address(w, *inst.operands, inst)
        w.runtime("scratch_to_lds", *address, *direct(w, inst, name))

    return emit


for _name in TO_LDS:
    _suffix = next(suffix for suffix, name in LOADS.items() if name == _name)
    opcode(f"global_load_lds_{_suffix}")(_global_to_lds(_name))
    opcode(f"scratch_load_lds_{_suffix}")(_scratch_to_lds(_name))
