"""The emulated MI300X behind the Device protocol."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import numpy as np

from hip_engine.device import AccessLog, Buffer, LaunchRecord
from hip_engine.errors import CodeObjectError
from hip_engine.gfx942.code_object import CodeObject
from hip_engine.gfx942.dispatch import BUDGET, Dispatcher, EmulatedKernel
from hip_engine.gfx942.memory import READ_BIT, WRITTEN_BIT, Memory
from hip_engine.gfx942.module import Module, relocated


class MemoryLog:
    """Read and write sets, taken from the memory's log before it was cleared."""

    def __init__(self, memory: Memory):
        self._memory = memory
        self._marks: dict[Buffer, np.ndarray] = {}

    def _of(self, buffer: Buffer) -> np.ndarray:
        if buffer not in self._marks:
            self._marks[buffer] = self._memory.log(buffer).copy()
        return self._marks[buffer]

    def written(self, buffer: Buffer) -> np.ndarray:
        return (self._of(buffer) & WRITTEN_BIT) != 0

    def read(self, buffer: Buffer) -> np.ndarray:
        return (self._of(buffer) & READ_BIT) != 0


class EmulatedDevice:
    """gfx942 code objects on this CPU. `threads` workgroups run at a time.

    A wave that executes more than `budget` instructions is stopped with a DeviceFault.
    """

    name = "gfx942 (emulated)"

    def __init__(self, threads: int | None = None, budget: int = BUDGET):
        self.memory = Memory()
        threads = threads or len(os.sched_getaffinity(0))
        self._dispatcher = Dispatcher(self.memory, threads, budget)

    def allocate(self, nbytes: int, label: str) -> Buffer:
        return self.memory.allocate(nbytes, label)

    def free(self, buffer: Buffer) -> None:
        self.memory.free(buffer)

    def write(self, buffer: Buffer, array: np.ndarray, offset_bytes: int = 0) -> None:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.memory.view(buffer, offset_bytes, raw.size)[:] = raw

    def read(self, buffer: Buffer, dtype, count: int, offset_bytes: int = 0) -> np.ndarray:
        dtype = np.dtype(dtype)
        return self.memory.view(buffer, offset_bytes, count * dtype.itemsize).view(dtype).copy()

    def load(self, code_object: bytes) -> dict[str, EmulatedKernel]:
        """Load every kernel of a code object, translating those not in the cache.

        Raises:
          CodeObjectError: not a gfx942 code object; UnsupportedInstruction if a kernel needs an
            instruction that is not implemented.
        """
        module = self.open(code_object)
        if not module:
            raise CodeObjectError("the code object holds no kernel")
        return dict(module)

    def open(self, code_object: bytes) -> Module:
        """Place a code object in memory and translate each kernel when it is first asked for.

        Raises:
          CodeObjectError: not a gfx942 code object, or a relocation that is not implemented.
        """
        code = CodeObject.parse(code_object)
        return Module(code, self._load_image(code))

    def _load_image(self, code: CodeObject) -> Buffer:
        image = self.allocate(len(code.image), f"code object {code.sha256[:12]}")
        try:
            self.write(image, relocated(code, image.address))
        except CodeObjectError:
            self.free(image)
            raise
        return image

    def launch(
        self,
        kernel: EmulatedKernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: Sequence,
        dynamic_lds_bytes: int = 0,
    ) -> LaunchRecord:
        return self._dispatcher.launch(kernel, grid, block, args, dynamic_lds_bytes)

    def synchronize(self) -> None:
        """Launches are complete when they return."""

    @contextlib.contextmanager
    def watch(self) -> Iterator[AccessLog]:
        """Log every byte that kernels read and write inside the `with`; off, it costs nothing."""
        self.memory.clear_log()
        self.memory.table.watch = 1
        try:
            yield MemoryLog(self.memory)
        finally:
            self.memory.table.watch = 0
