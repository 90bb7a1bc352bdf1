"""Control flow of a kernel: which instructions it reaches, basic blocks, and their grouping."""

from dataclasses import dataclass

from hip_engine.errors import UnsupportedInstruction
from hip_engine.gfx942.code_object import CodeObject, KernelDescriptor
from hip_engine.gfx942.disassembly import Instruction

BLOCK_INSTRUCTIONS = 64
PIECE_INSTRUCTIONS = 128

ENDS = {"s_endpgm", "s_endpgm_saved", "s_trap"}
INDIRECT = {"s_setpc_b64", "s_swappc_b64"}
CONTROL = {"s_barrier", "s_getpc_b64", "s_call_b64", "s_branch", *ENDS, *INDIRECT}


@dataclass(frozen=True)
class Block:
    """Straight-line code; `address` is the virtual address of its first instruction."""

    index: int
    address: int
    instructions: tuple[Instruction, ...]


def is_branch(inst: Instruction) -> bool:
    return inst.mnemonic.startswith("s_cbranch") or inst.mnemonic == "s_branch"


def ends_block(inst: Instruction) -> bool:
    return is_branch(inst) or inst.mnemonic in CONTROL - {"s_getpc_b64"}


def unsupported(kernel, address: int, why: str, text: str = "") -> UnsupportedInstruction:
    where = f"kernel {kernel.symbol} at offset {address - kernel.entry:#x}"
    return UnsupportedInstruction(f"{where}: {text + ': ' if text else ''}{why}")


def reachable(code: CodeObject, kernel: KernelDescriptor, instructions) -> list[Instruction]:
    """Instructions reachable from the entry, indirect jumps included.

    A jump through registers may go to any function whose address the code reached so far forms
    relative to the program counter, or that a relocation names; if none is found, to all of them.
    """
    index = {inst.address: n for n, inst in enumerate(instructions)}
    devices = {a for n, (a, _) in code.functions.items() if n not in code.kernels}
    seen: set[int] = set()
    work, mentioned = [kernel.entry], {value for _, _, value in code.relocations} & devices
    indirect = False
    while work:
        address = work.pop()
        while address not in seen:
            if address not in index:
                raise unsupported(kernel, address, "control leaves the code section")
            seen.add(address)
            at = index[address]
            inst = instructions[at]
            if inst.target is not None:
                work.append(inst.target)
            if inst.mnemonic == "s_getpc_b64":
                found = _relative_address(instructions[at : at + 6])
                mentioned |= found & devices
                work += [a for a in found - devices if a in index]  # a branch too far for s_branch
            indirect |= inst.mnemonic in INDIRECT
            if inst.mnemonic in ENDS or inst.mnemonic in ("s_branch", "s_setpc_b64"):
                break
            address += inst.size
        if indirect and not work:
            work = sorted((mentioned or devices) - seen)
    return [instructions[index[a]] for a in sorted(seen)]


def _relative_address(window: list[Instruction]) -> set[int]:
    """The address that `s_getpc_b64` and the `s_add_u32` of a literal after it make, if they do."""
    getpc, *after = window
    low = getpc.operands[0].index
    for inst in after:
        if inst.mnemonic == "s_add_u32" and inst.operands[0].index == low:
            literal = inst.operands[2]
            if inst.operands[1].index == low and literal.kind == "int":
                return {(getpc.address + getpc.size + int(literal.value)) & 0xFFFFFFFF}
    return set()


def leaders(code: CodeObject, kernel: KernelDescriptor, reached: list[Instruction]) -> set[int]:
    """Addresses at which a block must begin."""
    found = {kernel.entry} | {a for a, _ in code.functions.values()}
    for at, inst in enumerate(reached):
        if inst.mnemonic == "s_getpc_b64":
            found |= _relative_address(reached[at : at + 6])
        if inst.target is not None:
            found.add(inst.target)
        if ends_block(inst):
            found.add(inst.address + inst.size)
    return found


def split(reached: list[Instruction], starts: set[int]) -> list[Block]:
    """Basic blocks in address order; long ones are cut, but not where register indexing is on."""
    blocks: list[Block] = []
    current: list[Instruction] = []
    indexed = False

    def close() -> None:
        if current:
            blocks.append(Block(len(blocks), current[0].address, tuple(current)))
            current.clear()

    for inst in reached:
        gap = current and current[-1].address + current[-1].size != inst.address
        full = len(current) >= BLOCK_INSTRUCTIONS and not indexed
        if inst.address in starts or gap or full:
            close()
        current.append(inst)
        if inst.mnemonic.startswith("s_set_gpr_idx_o"):  # on ... off stay in one block
            indexed = inst.mnemonic == "s_set_gpr_idx_on"
    close()
    return blocks


def pieces_of(blocks: list[Block]) -> list[list[Block]]:
    """Blocks in order, grouped so that a group has at most PIECE_INSTRUCTIONS."""
    grouped: list[list[Block]] = []
    count = PIECE_INSTRUCTIONS
    for block in blocks:
        count += len(block.instructions)
        if count > PIECE_INSTRUCTIONS or not grouped:
            grouped.append([])
            count = len(block.instructions)
        grouped[-1].append(block)
    return grouped
