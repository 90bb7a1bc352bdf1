"""Hardware registers (MODE), and scalar instructions that have no architectural effect here."""

import re

from hip_engine.gfx942 import layout
from hip_engine.gfx942.disassembly import Instruction, parse_operand
from hip_engine.gfx942.isa.table import opcode
from hip_engine.gfx942.wave import Wave

# Of MODE, rounding (bits 3:0) and denormals (7:4) can be changed.

CONSTANT_REGISTERS = ("HW_REG_HW_ID", "HW_REG_XCC_ID", "HW_REG_STATUS", "HW_REG_TRAPSTS")


def _hardware_register(w: Wave, inst: Instruction) -> tuple[str, int, int, list[str]]:
    """(name, offset, size, the other operands' text) of s_getreg and s_setreg."""
    text = inst.modifiers["text"]
    match = re.search(r"hwreg\((\w+)(?:,\s*(\d+),\s*(\d+))?\)", text)
    if not match:
        raise w.unsupported(f"hardware register in {text}")
    rest = [p.strip() for p in text.replace(match[0], "").split(",")]
    return match[1], int(match[2] or 0), int(match[3] or 32), [p for p in rest if p]


@opcode("s_getreg_b32")
def _getreg(w: Wave, inst: Instruction) -> None:
    """Bits of MODE; the registers that say where a wave runs read 0."""
    name, offset, size, (dst,) = _hardware_register(w, inst)
    if name == "HW_REG_MODE":
        value = w.load("i32", w.pointer("%w", layout.MODE), 4)
    elif name in CONSTANT_REGISTERS:
        value = w.const("i32", 0)
    else:
        raise w.unsupported(f"hardware register {name}")
    value = w.op("lshr", value, w.const("i32", offset))
    value = w.op("and", value, w.const("i32", (1 << size) - 1))
    w.set_sgpr(parse_operand(dst).index, value)


@opcode("s_setreg_b32", "s_setreg_imm32_b32")
def _setreg(w: Wave, inst: Instruction) -> None:
    """Replace bits of MODE; the runtime sets the host's rounding to match."""
    name, offset, size, (source,) = _hardware_register(w, inst)
    if name != "HW_REG_MODE" or offset + size > 8:
        raise w.unsupported(f"writing bits {offset} to {offset + size - 1} of {name}")
    mask = ((1 << size) - 1) << offset
    pointer = w.pointer("%w", layout.MODE)
    kept = w.op("and", w.load("i32", pointer, 4), w.const("i32", ~mask))
    new = w.op("shl", w.scalar(parse_operand(source)), w.const("i32", offset))
    w.store(w.op("or", kept, w.op("and", new, w.const("i32", mask))), pointer, 4)
    w.runtime("set_rounding")


@opcode("s_nop", "s_waitcnt", "s_sleep", "s_setprio", "s_sethalt", "s_icache_inv")
@opcode("s_dcache_wb", "s_dcache_inv", "s_ttracedata", "s_incperflevel", "s_decperflevel")
@opcode("buffer_wbl2", "buffer_inv", "s_dcache_inv_vol", "s_dcache_wb_vol")
@opcode("buffer_wbinvl1", "buffer_wbinvl1_vol", "s_sendmsg", "s_wakeup", "ds_nop")
@opcode("s_atc_probe", "s_atc_probe_buffer")
def _no_effect(w: Wave, inst: Instruction) -> None:
    """Timing, priority and cache control: no architectural effect in a coherent memory."""
