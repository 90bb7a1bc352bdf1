"""The emulated MI300X behind the Device protocol."""

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from hip_engine.device import AccessLog, Buffer, LaunchRecord
from hip_engine.errors import CodeObjectError
from hip_engine.gfx942.code_object import CodeObject
from hip_engine.gfx942.dispatch import BUDGET, Dispatcher, EmulatedKernel
from hip_engine.gfx942.memory import READ_BIT, WRITTEN_BIT, Memory
from hip_engine.gfx942.module import Module, relocated
from hip_engine.gfx942.precompile import precompile
from hip_engine.gfx942.sanitizer import parse_checks
from hip_engine.gfx942.streams import EmulatedEvent, EmulatedPinned, EmulatedStream


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

    `sanitize` names checks that a GPU cannot make; a finding raises SanitizerFault and ends the
    launch. memory: misaligned atomics and scalar loads (bounds are always checked).
    init: registers, LDS and memory that were never written, followed through copies and reported
    where they decide an address, a branch or EXEC, or reach the host. race: bytes of LDS or global
    memory touched by two waves of a workgroup between barriers, and barriers that not every wave
    reaches. waitcnt: a register used before the s_waitcnt that delivers it.

    With `counters`, LaunchRecord.memory holds what memory instructions did.
    """

    name = "gfx942 (emulated)"
    reports_accesses = True

    def __init__(
        self,
        threads: int | None = None,
        budget: int = BUDGET,
        sanitize: Collection[str] = (),
        counters: bool = False,
    ):
        self.sanitize = parse_checks(sanitize)
        self.memory = Memory(*(name in self.sanitize for name in ("init", "race", "memory")))
        threads = threads or len(os.sched_getaffinity(0))
        self._dispatcher = Dispatcher(self.memory, threads, budget, self.sanitize, counters)

    def allocate(self, nbytes: int, label: str) -> Buffer:
        return self.memory.allocate(nbytes, label)

    def free(self, buffer: Buffer) -> None:
        self.memory.free(buffer)

    def write(self, buffer: Buffer, array: np.ndarray, offset_bytes: int = 0) -> None:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.memory.view(buffer, offset_bytes, raw.size)[:] = raw
        self.memory.define(buffer, offset_bytes, raw.size)

    def read(self, buffer: Buffer, dtype, count: int, offset_bytes: int = 0) -> np.ndarray:
        dtype = np.dtype(dtype)
        self.memory.check_defined(buffer, offset_bytes, count * dtype.itemsize)
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
        precompile(module.code, module.observed)
        return dict(module)

    def open(self, code_object: bytes) -> Module:
        """Place a code object in memory and translate each kernel when it is first asked for.

        Raises:
          CodeObjectError: not a gfx942 code object, or a relocation that is not implemented.
        """
        code = CodeObject.parse(code_object)
        return Module(code, self._load_image(code), observed=bool(self.sanitize))

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
        stream: EmulatedStream | None = None,
    ) -> LaunchRecord:
        if stream is not None and stream.captures:
            return stream.add(kernel, grid, block, args, dynamic_lds_bytes)
        return self._dispatcher.launch(kernel, grid, block, args, dynamic_lds_bytes)

    @property
    def busy_s(self) -> float:
        return self._dispatcher.busy_s

    def stream(self) -> EmulatedStream:
        return EmulatedStream(self)

    def event(self) -> EmulatedEvent:
        return EmulatedEvent()

    def pinned(self, count: int, dtype) -> EmulatedPinned:
        return EmulatedPinned(count, dtype)

    def synchronize(self) -> None:
        """Launches are complete when they return."""

    @contextlib.contextmanager
    def watch(self, buffers: Sequence[Buffer] | None = None) -> Iterator[AccessLog]:
        """Log every byte that kernels read and write inside the `with`; off, it costs nothing.

        Launches inside have LaunchRecord.memory. The log of `buffers` alone takes less memory than
        one of all that a kernel reads, weights too.
        """
        counters, self._dispatcher.counters = self._dispatcher.counters, True
        self.memory.watch(buffers)
        try:
            yield MemoryLog(self.memory)
        finally:
            self.memory.unwatch()
            self._dispatcher.counters = counters
