"""A kernel's machine code to LLVM IR: basic blocks, grouped into functions ("pieces").

Each piece is `i32 piece(ptr wave, i32 block)`: it enters at the block given, runs until control
leaves it, and returns the next block or why it stopped (layout.py). Pieces are small because the
time LLVM takes grows faster than the length of a function.
"""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from hip_engine.errors import UnsupportedInstruction
from hip_engine.gfx942 import layout
from hip_engine.gfx942.code_object import CodeObject, KernelDescriptor
from hip_engine.gfx942.disassembly import Instruction
from hip_engine.gfx942.effects import SCC_INDEX, VMEM, Effects, kind_of, wait_counts
from hip_engine.gfx942.emit import Value
from hip_engine.gfx942.flow import (
    INDIRECT,
    Block,
    ends_block,
    leaders,
    pieces_of,
    reachable,
    split,
    unsupported,
)
from hip_engine.gfx942.isa import OPCODES, instruction_class
from hip_engine.gfx942.isa.refused import refusal
from hip_engine.gfx942.wave import EXEC, VCC, Wave

KEEP_SUBNORMALS = 0xF


@dataclass(frozen=True)
class Translation:
    """IR text of one kernel and what the dispatcher and the reports need to know about it."""

    ir: str
    pieces: tuple[str, ...]  # function of each block
    block_addresses: tuple[int, ...]
    block_classes: tuple[dict[str, int], ...]
    entry: int
    sites: tuple[tuple[int, str], ...]  # address and text of each instruction, by site number
    effects: bytes  # one effects.RECORD a site


class Site(NamedTuple):
    """One instruction as translated: what reports name and what the sanitizers check."""

    offset: int
    text: str
    mnemonic: str
    operand_text: str
    effects: Effects


def translate(
    code: CodeObject,
    kernel: KernelDescriptor,
    instructions: list[Instruction],
    name: str,
    observed: bool = False,
) -> Translation:
    """Translate everything reachable from the kernel's entry.

    With `observed`, the sanitizers' observer is called before each instruction.

    Raises:
      UnsupportedInstruction: an opcode or an operand that is not implemented, with the kernel,
        the offset and the text.
    """
    reached = reachable(code, kernel, instructions)
    blocks = split(reached, leaders(code, kernel, reached))
    by_address = {block.address: block.index for block in blocks}
    sets_mode = any(i.mnemonic.startswith("s_setreg") for i in reached)
    flushes = sets_mode or kernel.float_mode >> 4 != KEEP_SUBNORMALS
    sites: list[Site] = []
    functions: list[str] = []
    pieces: list[str] = []
    declared: dict[str, str] = {}
    for number, group in enumerate(pieces_of(blocks)):
        function = f"{name}_{number}"
        w = Wave(observed)
        w.dynamic_mode = flushes
        _piece(w, function, group, by_address, kernel, sites)
        functions.append("\n".join(w.lines))
        declared |= w.declared
        pieces += [function] * len(group)
    ir = "\n".join([*sorted(declared.values()), *functions, _PROFILE])
    return Translation(
        ir=ir,
        pieces=tuple(pieces),
        block_addresses=tuple(b.address for b in blocks),
        block_classes=tuple(
            dict(Counter(instruction_class(i.mnemonic) for i in b.instructions)) for b in blocks
        ),
        entry=by_address[kernel.entry],
        sites=tuple((site.offset, site.text) for site in sites),
        effects=b"".join(s.effects.pack(s.mnemonic, s.operand_text) for s in sites),
    )


def survey(
    code: CodeObject, kernel: KernelDescriptor, instructions: list[Instruction]
) -> tuple[list[Instruction], list[UnsupportedInstruction]]:
    """Everything reachable from the entry, and an error for each part that `translate` refuses.

    Raises:
      UnsupportedInstruction: control leaves the code section.
    """
    reached = reachable(code, kernel, instructions)
    refused = []
    w = Wave()
    for inst in reached:
        try:
            if inst.mnemonic.startswith("s_cbranch") and inst.mnemonic not in CONDITIONS:
                raise unsupported(kernel, inst.address, "this branch is not implemented", inst.text)
            if not ends_block(inst):
                w.begin_block()
                _instruction(w, inst, kernel, [])
        except UnsupportedInstruction as error:
            refused.append(error)
    return reached, refused


_PROFILE = '!0 = !{!"branch_weights", i32 1, i32 1000000}\n'


def _piece(w, function, group, by_address, kernel, sites) -> None:
    local = {block.index for block in group}

    def goto(index: int) -> str:
        """Label of a block: itself if it is in this piece, else a stub that returns its number."""
        return f"b{index}" if index in local else f"leave{index}"

    w.lines.append(f"define i32 @{function}(ptr noalias %w, i32 %block) {{")
    w.label("entry")
    cases = " ".join(f"i32 {b.index}, label %b{b.index}" for b in group)
    w.do(f"switch i32 %block, label %b{group[0].index} [{cases}]")
    left: set[int] = set()
    headers = {
        by_address[i.target]
        for block in group
        for i in block.instructions
        if i.target is not None and i.target <= i.address
    }
    for block in group:
        w.label(f"b{block.index}")
        w.begin_block()
        _count(w, block, len(sites), check=block.index in headers)
        for inst in block.instructions[:-1]:
            _instruction(w, inst, kernel, sites)
        for index in _terminate(w, block, by_address, kernel, sites, goto):
            if index not in local:
                left.add(index)
    for index in sorted(left):
        w.label(f"leave{index}")
        w.do(f"ret i32 {index}")
    w.lines.append("}")


def _count(w: Wave, block: Block, site: int, check: bool) -> None:
    """One more entry of this block; loop heads check the instruction budget."""
    counts = w.load("ptr", w.pointer("%w", layout.COUNTS), 8)
    slot = w.let("ptr", f"getelementptr i64, ptr {counts.name}, i64 {block.index}")
    entered = w.load("i64", slot, 8)
    w.store(w.op("add", entered, w.const("i64", 1)), slot, 8)
    pointer = w.pointer("%w", layout.BUDGET)
    budget = w.load("i64", pointer, 8)
    budget = w.op("sub", budget, w.const("i64", len(block.instructions)))
    w.store(budget, pointer, 8)
    if check:
        out = w.icmp("slt", budget, w.const("i64", 0))
        w.store(w.const("i32", site), w.pointer("%w", layout.SITE), 4)
        w.exit_if(out, layout.RUNAWAY)


def _begin(w: Wave, inst: Instruction, kernel, sites: list[Site]) -> None:
    """What precedes every instruction: its site, the observer, the vector memory counter."""
    w.inst, w.site, w.effects = inst, len(sites), Effects()
    text = inst.modifiers.get("text", "")
    sites.append(Site(inst.address - kernel.entry, inst.text, inst.mnemonic, text, w.effects))
    if w.observed:
        w.runtime("observe")
    if kind_of(inst.mnemonic) & VMEM:
        _issue_vector_memory(w)
    elif inst.mnemonic == "s_waitcnt":
        _wait_vector_memory(w, wait_counts(text)[0])


def _issue_vector_memory(w: Wave) -> None:
    """One more in flight; the peak is kept."""
    pointer = w.pointer("%w", layout.VM_ISSUED)
    issued = w.op("add", w.load("i32", pointer, 4), w.const("i32", 1))
    w.store(issued, pointer, 4)
    done = w.load("i32", w.pointer("%w", layout.VM_DONE), 4)
    peak = w.pointer("%w", layout.VM_PEAK)
    most = w.intrinsic("umax", w.load("i32", peak, 4), w.op("sub", issued, done))
    w.store(most, peak, 4)


def _wait_vector_memory(w: Wave, left: int) -> None:
    """s_waitcnt vmcnt(left): all but the last `left` are complete."""
    if left < 0:
        return
    issued = w.load("i32", w.pointer("%w", layout.VM_ISSUED), 4)
    complete = w.intrinsic("usub.sat", issued, w.const("i32", left))
    pointer = w.pointer("%w", layout.VM_DONE)
    w.store(w.intrinsic("umax", w.load("i32", pointer, 4), complete), pointer, 4)


def _instruction(w: Wave, inst: Instruction, kernel, sites) -> None:
    _begin(w, inst, kernel, sites)
    emitter = OPCODES.get(inst.base)
    try:
        if inst.mnemonic == "s_getpc_b64":
            _getpc(w, inst)
            return
        if emitter is None:
            raise UnsupportedInstruction(refusal(inst.base) or "this opcode is not implemented")
        if w.indexed and inst.base.startswith("v_") and inst.base != "v_mov_b32":
            raise UnsupportedInstruction("register indexing of anything but v_mov_b32")
        emitter(w, inst)
    except UnsupportedInstruction as error:
        raise unsupported(kernel, inst.address, str(error), inst.text) from error
    except (AssertionError, IndexError, KeyError, ValueError, TypeError, StopIteration) as error:
        reason = f"operands not understood ({type(error).__name__}: {error})"
        raise unsupported(kernel, inst.address, reason, inst.text) from error


def _getpc(w: Wave, inst: Instruction) -> None:
    base = w.load("i64", w.pointer("%w", layout.CODE_BASE), 8)
    value = w.op("add", base, w.const("i64", inst.address + inst.size))
    w.set_sgpr(inst.operands[0].index, value)


def _terminate(w, block: Block, by_address, kernel, sites, goto) -> list[int]:
    """Emit the last instruction and the transfer of control; returns the blocks it may go to."""
    inst = block.instructions[-1]
    after = inst.address + inst.size
    name = inst.mnemonic
    if w.indexed and name != "s_set_gpr_idx_off":
        raise unsupported(kernel, inst.address, "register indexing that outlasts its block")
    if not ends_block(inst):
        _instruction(w, inst, kernel, sites)
        return _jump(w, [by_address[after]], goto)
    _begin(w, inst, kernel, sites)
    if name in ("s_endpgm", "s_endpgm_saved"):
        w.do(f"ret i32 {layout.ENDED}")
        return []
    if name == "s_trap":
        w.runtime("trap")
        w.do("unreachable")
        return []
    if name == "s_barrier":
        w.store(w.const("i32", by_address[after]), w.pointer("%w", layout.PC), 4)
        w.store(w.const("i32", w.site), w.pointer("%w", layout.SITE), 4)
        w.do(f"ret i32 {layout.BARRIER}")
        return []
    if name == "s_branch":
        return _jump(w, [by_address[inst.target]], goto)
    if name in (*INDIRECT, "s_call_b64"):
        return _call_or_return(w, inst, by_address, goto)
    return _conditional(w, inst, by_address, kernel, goto)


def _jump(w: Wave, indices: list[int], goto) -> list[int]:
    w.do(f"br label %{goto(indices[0])}")
    return indices


def _call_or_return(w: Wave, inst: Instruction, by_address, goto) -> list[int]:
    target = w.sgpr(inst.operands[-1].index, 64) if inst.mnemonic in INDIRECT else None
    if inst.mnemonic != "s_setpc_b64":
        base = w.load("i64", w.pointer("%w", layout.CODE_BASE), 8)
        here = w.op("add", base, w.const("i64", inst.address + inst.size))
        w.set_sgpr(inst.operands[0].index, here)
    if target is None:
        return _jump(w, [by_address[inst.target]], goto)
    site = w.const("i32", w.site)
    found = w.call("i32", "jump_to", Value("%w", "ptr"), site, target)
    w.do(f"ret i32 {found.name}")
    return []


CONDITIONS = {
    "s_cbranch_scc0": (None, "eq"),
    "s_cbranch_scc1": (None, "ne"),
    "s_cbranch_vccz": (VCC, "eq"),
    "s_cbranch_vccnz": (VCC, "ne"),
    "s_cbranch_execz": (EXEC, "eq"),
    "s_cbranch_execnz": (EXEC, "ne"),
}

# Debug conditions, which are 0 where no debugger set them.
NEVER_TAKEN = {
    "s_cbranch_cdbguser",
    "s_cbranch_cdbgsys",
    "s_cbranch_cdbgsys_or_user",
    "s_cbranch_cdbgsys_and_user",
}


def _require_branch(inst: Instruction, kernel) -> None:
    if inst.mnemonic not in CONDITIONS and inst.mnemonic not in NEVER_TAKEN:
        why = refusal(inst.mnemonic) or "this branch is not implemented"
        raise unsupported(kernel, inst.address, why, inst.text)


def _conditional(w: Wave, inst: Instruction, by_address, kernel, goto) -> list[int]:
    _require_branch(inst, kernel)
    if inst.mnemonic in NEVER_TAKEN:
        return _jump(w, [by_address[inst.address + inst.size]], goto)
    register, predicate = CONDITIONS[inst.mnemonic]
    if register is None:
        w.effects.add("condition", SCC_INDEX, 1)
        value = w.load("i32", w.pointer("%w", layout.SCC), 4)
    else:
        value = w.sgpr(register, 64, "condition")
    taken, after = by_address[inst.target], by_address[inst.address + inst.size]
    condition = w.icmp(predicate, value, w.const(value.ty, 0))
    w.do(f"br i1 {condition.name}, label %{goto(taken)}, label %{goto(after)}")
    return [taken, after]
