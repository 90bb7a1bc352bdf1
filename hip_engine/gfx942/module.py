"""A code object in device memory: its kernels, translated on demand, and its global symbols."""

import functools
import io
from collections.abc import Iterator, Mapping

import numpy as np
from elftools.elf.elffile import ELFFile

from hip_engine.device import Buffer
from hip_engine.errors import CodeObjectError
from hip_engine.gfx942 import jit
from hip_engine.gfx942.code_object import CodeObject
from hip_engine.gfx942.debug_info import source_line
from hip_engine.gfx942.disassembly import disassemble
from hip_engine.gfx942.dispatch import EmulatedKernel

R_AMDGPU_RELATIVE64 = 13
R_AMDGPU_ABS64 = 3


class Module(Mapping[str, EmulatedKernel]):
    """Kernels by symbol. A kernel that cannot be translated raises when it is asked for."""

    def __init__(self, code: CodeObject, image: Buffer, observed: bool = False):
        self.code, self.image, self.observed = code, image, observed
        self._compiled: dict[str, EmulatedKernel] = {}
        self._instructions = functools.cache(lambda: disassemble(code.data))

    def __getitem__(self, symbol: str) -> EmulatedKernel:
        """The kernel, ready to run.

        Raises:
          KeyError: there is none of this name; `find` says it in words.
          UnsupportedInstruction: it needs an instruction that is not implemented.
        """
        if symbol not in self._compiled:
            kernel = self.code.kernels[symbol]
            self._compiled[symbol] = EmulatedKernel(
                symbol=symbol,
                code_object_sha256=self.code.sha256,
                descriptor=kernel,
                compiled=jit.compile_kernel(self.code, kernel, self._instructions, self.observed),
                image=self.image,
                text=self.code.text,
                source_line=functools.partial(source_line, self.code.data),
            )
        return self._compiled[symbol]

    def __iter__(self) -> Iterator[str]:
        return iter(self.code.kernels)

    def __len__(self) -> int:
        return len(self.code.kernels)

    def find(self, symbol: str) -> EmulatedKernel:
        """As `[]`, with an error that says which kernels there are. Raises CodeObjectError."""
        if symbol not in self.code.kernels:
            known = ", ".join(self) or "none"
            raise CodeObjectError(f"no kernel {symbol!r} in the code object; it has: {known}")
        return self[symbol]

    @functools.cached_property
    def variables(self) -> dict[str, Buffer]:
        """Global variables of the code object at their device addresses."""
        found = {}
        for section in ELFFile(io.BytesIO(self.code.data)).iter_sections():
            if section["sh_type"] not in ("SHT_SYMTAB", "SHT_DYNSYM"):
                continue
            for symbol in section.iter_symbols():
                begin, size = symbol["st_value"], symbol["st_size"]
                if symbol["st_info"]["type"] == "STT_OBJECT" and symbol["st_shndx"] != "SHN_UNDEF":
                    if begin + size <= len(self.code.image):
                        found[symbol.name] = Buffer(self.image.address + begin, size, symbol.name)
        return found


def relocated(code: CodeObject, base: int) -> np.ndarray:
    """The memory image of a code object that is loaded at `base`.

    Raises:
      CodeObjectError: a relocation that is not implemented.
    """
    data = np.frombuffer(code.image, np.uint8).copy()
    for address, kind, value in code.relocations:
        if kind not in (R_AMDGPU_RELATIVE64, R_AMDGPU_ABS64):
            raise CodeObjectError(f"relocation type {kind} is not implemented")
        target = (base + value) & (2**64 - 1)
        data[address : address + 8] = np.frombuffer(target.to_bytes(8, "little"), np.uint8)
    return data
