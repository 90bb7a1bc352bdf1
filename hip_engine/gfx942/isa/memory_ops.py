"""GLOBAL, FLAT and SCRATCH loads, stores and atomics: calls into the C runtime."""

from hip_engine.gfx942.disassembly import Instruction, Operand
from hip_engine.gfx942.emit import Value
from hip_engine.gfx942.isa.lanes import row_index
from hip_engine.gfx942.isa.table import opcode
from hip_engine.gfx942.wave import Wave

# Suffix -> (runtime width name, dwords written).
LOADS = {
    "ubyte": "u8",
    "sbyte": "i8",
    "ushort": "u16",
    "sshort": "i16",
    "ubyte_d16": "u8_lo",
    "ubyte_d16_hi": "u8_hi",
    "sbyte_d16": "i8_lo",
    "sbyte_d16_hi": "i8_hi",
    "short_d16": "u16_lo",
    "short_d16_hi": "u16_hi",
    "dword": "b32",
    "dwordx2": "b64",
    "dwordx3": "b96",
    "dwordx4": "b128",
}
STORES = {
    "byte": "b8",
    "byte_d16_hi": "b8_hi",
    "short": "b16",
    "short_d16_hi": "b16_hi",
    "dword": "b32",
    "dwordx2": "b64",
    "dwordx3": "b96",
    "dwordx4": "b128",
}
# Atomic -> operation number in the runtime (atomics.h order).
ATOMICS = (
    "swap",
    "cmpswap",
    "add",
    "sub",
    "smin",
    "umin",
    "smax",
    "umax",
    "and",
    "or",
    "xor",
    "inc",
    "dec",
    "add_f32",
    "add_f64",
    "min_f64",
    "max_f64",
    "pk_add_f16",
    "pk_add_bf16",
    "rsub",
    "min_f32",
    "max_f32",
    "mskor",
    "cmpswap_f32",
    "cmpswap_f64",
    "wrap",
)
# Those that only LDS has.
LDS_ONLY = ("rsub", "min_f32", "max_f32", "mskor", "cmpswap_f32", "cmpswap_f64", "wrap")


def _offset(inst: Instruction) -> int:
    return inst.number("offset")


def global_address(
    w: Wave, inst: Instruction, vaddr: Operand, saddr: Operand | None
) -> list[Value]:
    """(row of the address, 1 if it is 64-bit, uniform base) of a global or flat access."""
    base = w.const("i64", _offset(inst))
    if saddr is not None and saddr.kind == "s":
        base = w.op("add", w.sgpr(saddr.index, 64, "saddress"), base)
        return [row_index(w, vaddr, "address"), w.const("i32", 0), base]
    return [row_index(w, vaddr, "address"), w.const("i32", 1), base]


def _load(space: str, name: str):
    def emit(w: Wave, inst: Instruction) -> None:
        dst, vaddr, *rest = inst.operands
        address = global_address(w, inst, vaddr, rest[0] if rest else None)
        w.runtime(f"{space}_load_{name}", *address, row_index(w, dst, "result"))

    return emit


def _store(space: str, name: str):
    def emit(w: Wave, inst: Instruction) -> None:
        vaddr, data, *rest = inst.operands
        address = global_address(w, inst, vaddr, rest[0] if rest else None)
        w.runtime(f"{space}_store_{name}", *address, row_index(w, data, "read"))

    return emit


def _atomic(space: str, number: int, dwords: int):
    def emit(w: Wave, inst: Instruction) -> None:
        operands = list(inst.operands)
        returns = inst.flag("sc0")
        dst = row_index(w, operands.pop(0), "result") if returns else w.const("i32", -1)
        vaddr, data, *rest = operands
        address = global_address(w, inst, vaddr, rest[0] if rest else None)
        code = [w.const("i32", number), w.const("i32", dwords)]
        w.runtime(f"{space}_atomic", *address, row_index(w, data, "read"), dst, *code)

    return emit


for _space in ("global", "flat"):
    for _suffix, _name in LOADS.items():
        opcode(f"{_space}_load_{_suffix}")(_load(_space, _name))
    for _suffix, _name in STORES.items():
        opcode(f"{_space}_store_{_suffix}")(_store(_space, _name))
    for _number, _name in enumerate(ATOMICS):
        if _name in LDS_ONLY:
            continue
        _dwords = 2 if _name.endswith("f64") else 1
        opcode(f"{_space}_atomic_{_name}")(_atomic(_space, _number, _dwords))
        if "_" not in _name:
            opcode(f"{_space}_atomic_{_name}_x2")(_atomic(_space, _number, 2))


# Scratch: a private byte array for each lane.


def scratch_address(w: Wave, vaddr: Operand, saddr: Operand, inst: Instruction) -> list[Value]:
    row = row_index(w, vaddr, "address") if vaddr.kind == "v" else w.const("i32", -1)
    base = w.const("i32", _offset(inst))
    if saddr.kind == "s":
        base = w.op("add", base, w.sgpr(saddr.index, 32, "saddress"))
    elif saddr.kind == "int":
        base = w.op("add", base, w.const("i32", saddr.value))
    return [row, base]


def _scratch_load(name: str):
    def emit(w: Wave, inst: Instruction) -> None:
        dst, vaddr, saddr = inst.operands
        w.runtime(
            f"scratch_load_{name}",
            *scratch_address(w, vaddr, saddr, inst),
            row_index(w, dst, "result"),
        )

    return emit


def _scratch_store(name: str):
    def emit(w: Wave, inst: Instruction) -> None:
        vaddr, data, saddr = inst.operands
        address = scratch_address(w, vaddr, saddr, inst)
        w.runtime(f"scratch_store_{name}", *address, row_index(w, data, "read"))

    return emit


for _suffix, _name in LOADS.items():
    opcode(f"scratch_load_{_suffix}")(_scratch_load(_name))
for _suffix, _name in STORES.items():
    opcode(f"scratch_store_{_suffix}")(_scratch_store(_name))
