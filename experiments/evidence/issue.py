"""How long a compute unit issues the instructions of a kernel, by LLVM's scheduling model.

llvm-mca says which unit each instruction of a basic block occupies, in slots of four clocks (a
wave of 64 lanes on 16); the emulator says how often waves ran the block.
"""

import json
from collections.abc import Mapping, Sequence

from hip_engine.errors import CodeObjectError
from hip_engine.gfx942.disassembly import Instruction
from hip_engine.toolchain import TARGET, find_mca, run

CLOCKS_PER_SLOT = 4
COMMAND = ("-mtriple=amdgcn-amd-amdhsa", f"-mcpu={TARGET}", "-iterations=1", "--json", "-")


def issue_slots(code: Sequence[Instruction], blocks: Mapping[int, int]) -> dict[str, int]:
    """Slots that each unit (HWVALU, HWXDL, ...) is occupied for, summed over all waves.

    `code`: the kernel's instructions in order. `blocks`: as LaunchRecord.blocks.

    Raises:
      CodeObjectError: llvm-mca refuses an instruction.
    """
    bodies = _bodies(code, blocks)
    regions = [
        f"# LLVM-MCA-BEGIN {offset}\n{text}\n# LLVM-MCA-END {offset}"
        for offset, text in bodies.items()
    ]
    done = run([find_mca(), *COMMAND], text="\n".join(regions) + "\n")
    if done.returncode:
        raise CodeObjectError(f"llvm-mca refused the kernel: {done.stderr.strip().splitlines()[0]}")
    return _weighted(json.loads(done.stdout), blocks)


def _bodies(code: Sequence[Instruction], blocks: Mapping[int, int]) -> dict[int, str]:
    """Assembly of each block that ran, by its offset."""
    entry, starts = code[0].address, set(blocks)
    bodies: dict[int, list[str]] = {}
    current = 0
    for instruction in code:
        offset = instruction.address - entry
        current = offset if offset in starts else current
        if blocks.get(current):
            bodies.setdefault(current, []).append(_without_target(instruction))
    return {offset: "\n".join(lines) for offset, lines in bodies.items()}


def _without_target(instruction: Instruction) -> str:
    """A branch is one slot wherever it leads; its label is not in the region."""
    return f"{instruction.mnemonic} 0" if instruction.target is not None else instruction.text


def _weighted(answer: dict, blocks: Mapping[int, int]) -> dict[str, int]:
    units = answer["TargetInfo"]["Resources"]
    slots = dict.fromkeys(units, 0)
    for region in answer["CodeRegions"]:
        total = len(region["Instructions"])  # the entry after the last instruction sums them
        for use in region["ResourcePressureView"]["ResourcePressureInfo"]:
            if use["InstructionIndex"] == total:
                unit = units[use["ResourceIndex"]]
                slots[unit] += use["ResourceUsage"] * blocks[int(region["Name"])]
    return slots
