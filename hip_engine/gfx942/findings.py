"""Faults and sanitizer findings of a launch, in words."""

from hip_engine.errors import DeviceFault, SanitizerFault
from hip_engine.gfx942 import layout
from hip_engine.gfx942.memory import Memory

FAULTS = {
    layout.FAULT_GLOBAL_LOAD: "load from global memory",
    layout.FAULT_GLOBAL_STORE: "store to global memory",
    layout.FAULT_GLOBAL_ATOMIC: "atomic on global memory",
    layout.FAULT_LDS: "access to LDS",
    layout.FAULT_SCRATCH: "access to scratch",
    layout.FAULT_JUMP: "jump to an address that is no code",
    layout.FAULT_TRAP: "trap instruction",
    layout.FAULT_DESCRIPTOR: "swizzled or add-tid buffer descriptor, not implemented,",
    layout.FAULT_INDEX: "register index past the end of its file,",
    layout.FAULT_FORMAT: "buffer format that is refused (10 and 11 bit fields, mixed widths),",
    layout.FAULT_ROUNDING: "f32 and f64 set to round differently, not implemented,",
}
FINDINGS = {
    layout.FAULT_MISALIGNED: ("memory", "misaligned access"),
    layout.FAULT_UNALIGNED: ("align", "access not aligned to its elements"),
    layout.FAULT_UNDEFINED: ("init", "a value that was never written decides this"),
    layout.FAULT_RACE: ("race", "byte touched by another wave since the last barrier"),
    layout.FAULT_BARRIER: ("race", "barrier reached by some waves only"),
    layout.FAULT_WAITCNT: ("waitcnt", "register used before the s_waitcnt that delivers it"),
}
SCALAR_FLAG = 0x10000
IN_MEMORY = (layout.FAULT_GLOBAL_LOAD, layout.FAULT_GLOBAL_STORE, layout.FAULT_GLOBAL_ATOMIC)

MEMORY_OR_LDS = (layout.FAULT_RACE, layout.FAULT_MISALIGNED, layout.FAULT_UNALIGNED)


def subject(kind: int, address: int) -> str:
    """What a finding is about: a register, or a byte address."""
    if kind in (layout.FAULT_UNDEFINED, layout.FAULT_WAITCNT):
        if address & SCALAR_FLAG:
            number = address & ~SCALAR_FLAG
            names = {106: "vcc_lo", 107: "vcc_hi", 124: "m0", 126: "exec_lo", 127: "exec_hi"}
            return "scc" if number == 128 else names.get(number, f"s{number}")
        return f"v{address}" if address < 256 else f"a{address - 256}"
    return "" if kind == layout.FAULT_BARRIER else f"0x{address:x}"


def fault_error(kernel, outcome, memory: Memory, budget: int) -> DeviceFault:
    """The error of the launch that ended with `outcome`."""
    offset, text = kernel.compiled.sites[outcome.site]
    kind, address = outcome.kind, outcome.address
    error, name = DeviceFault, ""
    if outcome.status == layout.RUNAWAY:
        what, address = f"more than {budget} instructions in one wave", None
    elif kind in FINDINGS:
        error = SanitizerFault
        name, words = FINDINGS[kind]
        what = f"{name}: {words} {subject(kind, address)}".rstrip()
    else:
        what = f"{FAULTS[kind]} at 0x{address:x}"
    if outcome.status != layout.RUNAWAY and (
        kind in IN_MEMORY
        or (
            kind in (layout.FAULT_RACE, layout.FAULT_MISALIGNED, layout.FAULT_UNALIGNED)
            and address >> 32
        )
    ):
        what += f", {memory.nearest(address)}"
    line = kernel.source_line(kernel.descriptor.entry + offset)
    workgroup = tuple(outcome.workgroup)
    raised = error(
        f"{kernel.symbol}+0x{offset:x}: {text}: {what} "
        f"(workgroup {workgroup}, wave {outcome.wave}, lane {outcome.lane}"
        f"{', ' + line if line else ''})",
        kernel=kernel.symbol,
        instruction=text,
        offset=offset,
        workgroup=workgroup,
        wave=outcome.wave,
        lane=outcome.lane,
        address=address,
    )
    if name:
        raised.kind = name
    return raised
