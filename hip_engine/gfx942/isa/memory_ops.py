"""SMEM, GLOBAL, FLAT, SCRATCH and DS loads, stores and atomics: calls into the C runtime."""

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
)
# Those that only LDS has.
LDS_ONLY = ("rsub", "min_f32", "max_f32", "mskor", "cmpswap_f32", "cmpswap_f64")


def _offset(inst: Instruction) -> int:
    return inst.number("offset")


def _address(w: Wave, inst: Instruction, vaddr: Operand, saddr: Operand | None) -> list[Value]:
    """(row of the address, 1 if it is 64-bit, uniform base) of a global or flat access."""
    base = w.const("i64", _offset(inst))
    if saddr is not None and saddr.kind == "s":
        base = w.op("add", w.sgpr(saddr.index, 64, "saddress"), base)
        return [row_index(w, vaddr, "address"), w.const("i32", 0), base]
    return [row_index(w, vaddr, "address"), w.const("i32", 1), base]


def _load(space: str, name: str):
    def emit(w: Wave, inst: Instruction) -> None:
        dst, vaddr, *rest = inst.operands
        address = _address(w, inst, vaddr, rest[0] if rest else None)
        w.runtime(f"{space}_load_{name}", *address, row_index(w, dst, "result"))

    return emit


def _store(space: str, name: str):
    def emit(w: Wave, inst: Instruction) -> None:
        vaddr, data, *rest = inst.operands
        address = _address(w, inst, vaddr, rest[0] if rest else None)
        w.runtime(f"{space}_store_{name}", *address, row_index(w, data, "read"))

    return emit


def _atomic(space: str, number: int, dwords: int):
    def emit(w: Wave, inst: Instruction) -> None:
        operands = list(inst.operands)
        returns = inst.flag("sc0")
        dst = row_index(w, operands.pop(0), "result") if returns else w.const("i32", -1)
        vaddr, data, *rest = operands
        address = _address(w, inst, vaddr, rest[0] if rest else None)
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


def _scratch_address(w: Wave, vaddr: Operand, saddr: Operand, inst: Instruction) -> list[Value]:
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
            *_scratch_address(w, vaddr, saddr, inst),
            row_index(w, dst, "result"),
        )

    return emit


def _scratch_store(name: str):
    def emit(w: Wave, inst: Instruction) -> None:
        vaddr, data, saddr = inst.operands
        address = _scratch_address(w, vaddr, saddr, inst)
        w.runtime(f"scratch_store_{name}", *address, row_index(w, data, "read"))

    return emit


for _suffix, _name in LOADS.items():
    opcode(f"scratch_load_{_suffix}")(_scratch_load(_name))
for _suffix, _name in STORES.items():
    opcode(f"scratch_store_{_suffix}")(_scratch_store(_name))


# LDS.

DS_READS = {
    "u8": "u8",
    "i8": "i8",
    "u16": "u16",
    "i16": "i16",
    "u8_d16": "u8_lo",
    "u8_d16_hi": "u8_hi",
    "i8_d16": "i8_lo",
    "i8_d16_hi": "i8_hi",
    "u16_d16": "u16_lo",
    "u16_d16_hi": "u16_hi",
    "b32": "b32",
    "b64": "b64",
    "b96": "b96",
    "b128": "b128",
}
DS_WRITES = {
    "b8": "b8",
    "b8_d16_hi": "b8_hi",
    "b16": "b16",
    "b16_d16_hi": "b16_hi",
    "b32": "b32",
    "b64": "b64",
    "b96": "b96",
    "b128": "b128",
}


def _lds_read(name: str):
    def emit(w: Wave, inst: Instruction) -> None:
        dst, address = inst.operands
        base = w.const("i32", _offset(inst))
        w.runtime(
            f"lds_load_{name}", row_index(w, address, "address"), base, row_index(w, dst, "result")
        )

    return emit


def _lds_write(name: str):
    def emit(w: Wave, inst: Instruction) -> None:
        address, data = inst.operands
        base = w.const("i32", _offset(inst))
        w.runtime(
            f"lds_store_{name}", row_index(w, address, "address"), base, row_index(w, data, "read")
        )

    return emit


for _suffix, _name in DS_READS.items():
    opcode(f"ds_read_{_suffix}")(_lds_read(_name))
for _suffix, _name in DS_WRITES.items():
    opcode(f"ds_write_{_suffix}")(_lds_write(_name))


def _part(operand: Operand, part: int) -> Operand:
    return Operand(operand.kind, operand.index + part)


def _lds_read2(dwords: int, stride: int):
    """Two elements at offset0 and offset1, in units of the element (times 64 for st64).

    The second load must not see an address register that the first one overwrote, so the
    runtime loads both before it writes.
    """

    def emit(w: Wave, inst: Instruction) -> None:
        dst, address = inst.operands
        unit = 4 * dwords * stride
        bases = [w.const("i32", unit * inst.number(f"offset{i}")) for i in (0, 1)]
        name = f"lds_load2_b{32 * dwords}"
        w.runtime(name, row_index(w, address, "address"), *bases, row_index(w, dst, "result"))

    return emit


def _lds_write2(dwords: int, stride: int):
    def emit(w: Wave, inst: Instruction) -> None:
        address, *data = inst.operands
        for i in (0, 1):
            base = w.const("i32", 4 * dwords * stride * inst.number(f"offset{i}"))
            name = f"lds_store_b{32 * dwords}"
            w.runtime(name, row_index(w, address, "address"), base, row_index(w, data[i], "read"))

    return emit


for _bits in (32, 64):
    for _stride, _word in ((1, ""), (64, "st64")):
        opcode(f"ds_read2{_word}_b{_bits}")(_lds_read2(_bits // 32, _stride))
        opcode(f"ds_write2{_word}_b{_bits}")(_lds_write2(_bits // 32, _stride))

DS_ATOMICS = {
    "add_u": "add",
    "sub_u": "sub",
    "inc_u": "inc",
    "dec_u": "dec",
    "min_i": "smin",
    "max_i": "smax",
    "min_u": "umin",
    "max_u": "umax",
    "and_b": "and",
    "or_b": "or",
    "xor_b": "xor",
    "rsub_u": "rsub",
}


def _lds_atomic(number: int, dwords: int, returns: bool):
    def emit(w: Wave, inst: Instruction) -> None:
        operands = list(inst.operands)
        dst = row_index(w, operands.pop(0), "result") if returns else w.const("i32", -1)
        roles = ("address", "read", "read")
        rows = [row_index(w, o, role) for o, role in zip(operands, roles, strict=False)]
        compare = rows[2] if len(rows) > 2 else w.const("i32", -1)
        code = [w.const("i32", number), w.const("i32", dwords)]
        base = w.const("i32", _offset(inst))
        w.runtime("lds_atomic", rows[0], base, rows[1], compare, dst, *code)

    return emit


for _bits in (32, 64):
    for _ds, _name in DS_ATOMICS.items():
        _head, _kind = _ds.rsplit("_", 1)
        _number = ATOMICS.index(_name)
        opcode(f"ds_{_head}_{_kind}{_bits}")(_lds_atomic(_number, _bits // 32, False))
        opcode(f"ds_{_head}_rtn_{_kind}{_bits}")(_lds_atomic(_number, _bits // 32, True))
    opcode(f"ds_wrxchg_rtn_b{_bits}")(_lds_atomic(ATOMICS.index("swap"), _bits // 32, True))
    opcode(f"ds_cmpst_b{_bits}")(_lds_atomic(ATOMICS.index("cmpswap"), _bits // 32, False))
    opcode(f"ds_cmpst_rtn_b{_bits}")(_lds_atomic(ATOMICS.index("cmpswap"), _bits // 32, True))
DS_FLOATS = {
    "add_f32": ("add_f32", 1),
    "add_f64": ("add_f64", 2),
    "min_f32": ("min_f32", 1),
    "max_f32": ("max_f32", 1),
    "min_f64": ("min_f64", 2),
    "max_f64": ("max_f64", 2),
    "cmpst_f32": ("cmpswap_f32", 1),
    "cmpst_f64": ("cmpswap_f64", 2),
    "pk_add_f16": ("pk_add_f16", 1),
    "pk_add_bf16": ("pk_add_bf16", 1),
    "mskor_b32": ("mskor", 1),
    "mskor_b64": ("mskor", 2),
}
for _ds, (_name, _dwords) in DS_FLOATS.items():
    _head, _kind = _ds.rsplit("_", 1)
    _number = ATOMICS.index(_name)
    opcode(f"ds_{_ds}")(_lds_atomic(_number, _dwords, False))
    opcode(f"ds_{_head}_rtn_{_kind}")(_lds_atomic(_number, _dwords, True))


def _lds_exchange2(dwords: int, stride: int):
    """Two exchanges at offset0 and offset1; the old values in order."""

    def emit(w: Wave, inst: Instruction) -> None:
        dst, address, *data = inst.operands
        unit = 4 * dwords * stride
        at = row_index(w, address, "address")
        bases = [w.const("i32", unit * inst.number(f"offset{i}")) for i in (0, 1)]
        new = [row_index(w, operand, "read") for operand in data]
        old = row_index(w, dst, "result")
        w.runtime("lds_exchange2", at, *bases, *new, old, w.const("i32", dwords))

    return emit


for _bits in (32, 64):
    for _stride, _word in ((1, ""), (64, "st64")):
        opcode(f"ds_wrxchg2{_word}_rtn_b{_bits}")(_lds_exchange2(_bits // 32, _stride))


# Scalar memory.

SCALAR_DWORDS = {"dword": 1, "dwordx2": 2, "dwordx4": 4, "dwordx8": 8, "dwordx16": 16}


def _scalar_load(dwords: int):
    def emit(w: Wave, inst: Instruction) -> None:
        dst, base, *offset = inst.operands
        address = w.sgpr(base.index, 64, "saddress")
        if offset and offset[0].kind == "s":
            address = w.op(
                "add", address, w.cast("zext", w.sgpr(offset[0].index, 32, "saddress"), "i64")
            )
        elif offset:
            address = w.op("add", address, w.const("i64", int(offset[0].value)))
        address = w.op("add", address, w.const("i64", _offset(inst)))
        w.check_sgprs(dst.index, dwords)
        w.effects.add("sresult", dst.index, dwords)
        w.runtime("scalar_load", address, w.const("i32", dst.index), w.const("i32", dwords))
        if dst.index + dwords > 126:
            w.begin_block()

    return emit


for _suffix, _dwords in SCALAR_DWORDS.items():
    opcode(f"s_load_{_suffix}")(_scalar_load(_dwords))
