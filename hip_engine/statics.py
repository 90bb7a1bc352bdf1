"""What a code object says of its kernels before any of them runs."""

from collections import Counter
from functools import cached_property
from typing import NamedTuple

from hip_engine.gfx942.code_object import CodeObject
from hip_engine.gfx942.disassembly import Instruction, disassemble
from hip_engine.gfx942.flow import reachable
from hip_engine.gfx942.isa.table import instruction_class


class Registers(NamedTuple):
    """Of one wave, by the metadata; LDS of a workgroup and scratch of a lane in bytes."""

    vgprs: int
    agprs: int
    sgprs: int
    spills: int
    lds_bytes: int
    scratch_bytes: int


class StaticCode:
    """A code object, disassembled when that is first asked for."""

    def __init__(self, code_object: bytes):
        self._code = CodeObject.parse(code_object)

    def registers(self, symbol: str) -> Registers:
        kernel = self._code.kernels[symbol]
        told = kernel.metadata
        return Registers(
            vgprs=told[".vgpr_count"],
            agprs=told.get(".agpr_count", 0),
            sgprs=told[".sgpr_count"],
            spills=told[".vgpr_spill_count"] + told[".sgpr_spill_count"],
            lds_bytes=kernel.lds_bytes,
            scratch_bytes=kernel.scratch_bytes,
        )

    def contains(self, symbol: str) -> dict[str, int]:
        """Instructions by class that can be reached from the kernel's entry, each counted once."""
        kernel = self._code.kernels[symbol]
        reached = reachable(self._code, kernel, self._instructions)
        return dict(Counter(instruction_class(i.mnemonic) for i in reached))

    @cached_property
    def _instructions(self) -> list[Instruction]:
        return disassemble(self._code.data)
