"""DS: loads, stores, atomics and shared counters in LDS, as calls into the C runtime."""

from hip_engine.gfx942.disassembly import Instruction
from hip_engine.gfx942.isa.lanes import row_index
from hip_engine.gfx942.isa.memory_ops import ATOMICS
from hip_engine.gfx942.isa.table import opcode
from hip_engine.gfx942.wave import M0, Wave

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
        base = w.const("i32", inst.number("offset"))
        w.runtime(
            f"lds_load_{name}", row_index(w, address, "address"), base, row_index(w, dst, "result")
        )

    return emit


def _lds_write(name: str):
    def emit(w: Wave, inst: Instruction) -> None:
        address, data = inst.operands
        base = w.const("i32", inst.number("offset"))
        w.runtime(
            f"lds_store_{name}", row_index(w, address, "address"), base, row_index(w, data, "read")
        )

    return emit


for _suffix, _name in DS_READS.items():
    opcode(f"ds_read_{_suffix}")(_lds_read(_name))
for _suffix, _name in DS_WRITES.items():
    opcode(f"ds_write_{_suffix}")(_lds_write(_name))


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
        base = w.const("i32", inst.number("offset"))
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


opcode("ds_wrap_rtn_b32")(_lds_atomic(ATOMICS.index("wrap"), 1, True))


@opcode("ds_condxchg32_rtn_b64")
def _conditional_exchange(w: Wave, inst: Instruction) -> None:
    dst, address, data = inst.operands
    base = w.const("i32", inst.number("offset"))
    rows = [row_index(w, data, "read"), row_index(w, dst, "result")]
    w.runtime("lds_conditional_exchange", row_index(w, address, "address"), base, *rows)


def _thread_addressed(function: str, role: str):
    """LDS at M0 + offset + 4 * lane."""

    def emit(w: Wave, inst: Instruction) -> None:
        w.effects.add("saddress", M0, 1)
        base = w.const("i32", inst.number("offset"))
        w.runtime(function, w.const("i32", -1), base, row_index(w, inst.operands[0], role))

    return emit


opcode("ds_read_addtid_b32")(_thread_addressed("lds_load_b32", "result"))
opcode("ds_write_addtid_b32")(_thread_addressed("lds_store_b32", "read"))


def _count_lanes(consume: bool):
    def emit(w: Wave, inst: Instruction) -> None:
        w.effects.add("saddress", M0, 1)
        dst = row_index(w, inst.operands[0], "result")
        base = w.const("i32", inst.number("offset"))
        w.runtime("lds_count_lanes", base, dst, w.const("i32", consume))

    return emit


opcode("ds_append")(_count_lanes(False))
opcode("ds_consume")(_count_lanes(True))
