"""A real MI300X, through the C ABI of the HIP runtime (libamdhip64.so).

The project's tests run it on an emulated runtime with the same ABI, since no MI300X is at hand.
"""

import ctypes
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from ctypes import byref, c_int, c_size_t, c_void_p
from dataclasses import dataclass

import numpy as np

from hip_engine.device import AccessLog, Buffer, LaunchRecord
from hip_engine.errors import DeviceUnavailable, LaunchError
from hip_engine.gfx942.code_object import Argument, CodeObject
from hip_engine.hip import library
from hip_engine.hip.arguments import pack
from hip_engine.hip.stream import Event, Pinned, Stream, handle_of

ARCHITECTURE = "gfx942"
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
LAUNCH_PARAM_BUFFER_POINTER, LAUNCH_PARAM_BUFFER_SIZE, LAUNCH_PARAM_END = 1, 2, 3
# Room for hipDeviceProp_t, whose layout differs between releases: gcnArchName is searched in it.
PROPERTIES_BYTES = 8192
ARCH_NAME = re.compile(rb"gfx[0-9a-f]+[^\0]*")


@dataclass(frozen=True)
class HipKernel:
    """A function of a loaded module."""

    symbol: str
    code_object_sha256: str
    explicit: tuple[Argument, ...]
    function: ctypes.c_void_p

    @property
    def arguments(self):
        return tuple((a.name, a.offset, a.size, a.kind) for a in self.explicit)


class HipDevice:
    """The first gfx942 device of the machine. Errors of the runtime are HipError, by code."""

    reports_accesses = False
    busy_s = 0.0

    def __init__(self):
        self.hip = library.load()
        ordinal, architecture = self._find_device()
        self.hip.call("hipSetDevice", ordinal)
        self.name = f"mi300x {ordinal} ({architecture})"
        self._live: dict[int, Buffer] = {}

    def _find_device(self) -> tuple[int, str]:
        count = c_int(0)
        status = self.hip.status("hipGetDeviceCount", byref(count))
        if status or count.value == 0:
            raise DeviceUnavailable(
                f"the HIP runtime sees no GPU ({self.hip.text(status)}): check /dev/kfd, the "
                f"amdgpu driver and the render group; {library.REMEDY}"
            )
        seen = []
        for ordinal in range(count.value):
            properties = ctypes.create_string_buffer(PROPERTIES_BYTES)
            self.hip.call("hipGetDevicePropertiesR0600", properties, ordinal)
            match = ARCH_NAME.search(properties.raw)
            architecture = match[0].decode(errors="replace") if match else "unnamed"
            if architecture.split(":")[0] == ARCHITECTURE:
                return ordinal, architecture
            seen.append(architecture)
        raise DeviceUnavailable(
            f"no {ARCHITECTURE} among the GPUs of this machine ({', '.join(seen)}); "
            f"{library.REMEDY}"
        )

    @property
    def memory_bytes(self) -> tuple[int, int]:
        """(free, total)."""
        free, total = c_size_t(), c_size_t()
        self.hip.call("hipMemGetInfo", byref(free), byref(total))
        return free.value, total.value

    def allocate(self, nbytes: int, label: str) -> Buffer:
        context = f"{label}, {nbytes} bytes on {self.name}"
        pointer = self.hip.make("hipMalloc", max(nbytes, 1), context=context)
        buffer = Buffer(pointer.value, nbytes, label)
        self._live[buffer.address] = buffer
        return buffer

    def free(self, buffer: Buffer) -> None:
        self._require_live(buffer)
        del self._live[buffer.address]
        self.hip.call("hipFree", buffer.address, context=buffer.label)

    def write(self, buffer: Buffer, array: np.ndarray, offset_bytes: int = 0) -> None:
        source = np.ascontiguousarray(array)
        target = self._address_of(buffer, offset_bytes, source.nbytes)
        copy = (target, source.ctypes.data, source.nbytes, HOST_TO_DEVICE)
        self.hip.call("hipMemcpy", *copy, context=buffer.label)

    def read(
        self, buffer: Buffer, dtype: np.dtype, count: int, offset_bytes: int = 0
    ) -> np.ndarray:
        result = np.empty(count, dtype)
        source = self._address_of(buffer, offset_bytes, result.nbytes)
        copy = (result.ctypes.data, source, result.nbytes, DEVICE_TO_HOST)
        self.hip.call("hipMemcpy", *copy, context=buffer.label)
        return result

    def fill(self, buffer: Buffer, byte: int, stream: Stream | None = None) -> None:
        """Set every byte, in the order of `stream`."""
        self._require_live(buffer)
        fill = (buffer.address, byte, buffer.nbytes, handle_of(stream))
        self.hip.call("hipMemsetAsync", *fill, context=buffer.label)

    def load(self, code_object: bytes) -> dict[str, HipKernel]:
        parsed = CodeObject.parse(code_object)
        module = self.hip.make("hipModuleLoadData", code_object, context="code object")
        kernels = {}
        for symbol, descriptor in parsed.kernels.items():
            function = self.hip.make("hipModuleGetFunction", module, symbol.encode())
            explicit = tuple(a for a in descriptor.arguments if not a.hidden)
            kernels[symbol] = HipKernel(symbol, parsed.sha256, explicit, function)
        return kernels

    def open(self, code_object: bytes) -> dict[str, HipKernel]:
        """As `load`: the driver needs no translation that could wait."""
        return self.load(code_object)

    def launch(
        self,
        kernel: HipKernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: Sequence,
        dynamic_lds_bytes: int = 0,
        stream: Stream | None = None,
    ) -> LaunchRecord:
        """Enqueues a launch. Errors of the kernel itself show at the next `synchronize`.

        Raises:
          LaunchError: arguments, grid or block refused.
        """
        grid, block = tuple(grid), tuple(block)
        if len(grid) != 3 or len(block) != 3 or not 1 <= min(*grid, *block) <= max(*grid) < 1 << 31:
            raise LaunchError(f"{kernel.symbol}: grid {grid} and block {block}: 3 positive sizes")
        packed = pack(kernel.symbol, kernel.explicit, args)
        size = c_size_t(len(packed))
        holder = ctypes.create_string_buffer(packed, len(packed))
        extra = (c_void_p * 5)(
            LAUNCH_PARAM_BUFFER_POINTER,
            ctypes.addressof(holder),
            LAUNCH_PARAM_BUFFER_SIZE,
            ctypes.addressof(size),
            LAUNCH_PARAM_END,
        )
        self.hip.call(
            "hipModuleLaunchKernel",
            *(kernel.function, *grid, *block, dynamic_lds_bytes, handle_of(stream), None, extra),
            context=f"{kernel.symbol} grid {grid} block {block}",
        )
        record = LaunchRecord(kernel.symbol, kernel.code_object_sha256, grid, block, packed)
        if stream is not None and stream.captured is not None:
            stream.captured.append(record)
        return record

    def stream(self) -> Stream:
        """A new stream, for a `with` block."""
        return Stream(self.hip, self._address_of)

    def event(self) -> Event:
        """A new event, for a `with` block."""
        return Event(self.hip)

    def pinned(self, count: int, dtype) -> Pinned:
        """Host memory for copies that do not hold up the host, for a `with` block."""
        return Pinned(self.hip, count, dtype)

    def synchronize(self) -> None:
        """Waits for everything enqueued.

        Raises:
          DeviceFault: a kernel faulted (the emulated device says where).
        """
        self.hip.call("hipDeviceSynchronize")

    def watch(self, buffers: Sequence[Buffer] | None = None) -> AbstractContextManager[AccessLog]:
        raise DeviceUnavailable(
            "a GPU does not report what its kernels read and write: use --device=emulated"
        )

    def _require_live(self, buffer: Buffer):
        if self._live.get(buffer.address) != buffer:
            raise LaunchError(f"{buffer.label} is not an allocation of {self.name}")

    def _address_of(self, buffer: Buffer, offset_bytes: int, nbytes: int) -> int:
        """Raises LaunchError unless the range lies in a live allocation."""
        self._require_live(buffer)
        if offset_bytes < 0 or offset_bytes + nbytes > buffer.nbytes:
            raise LaunchError(
                f"bytes {offset_bytes}..{offset_bytes + nbytes} of {buffer.label}, which has "
                f"{buffer.nbytes}"
            )
        return buffer.address + offset_bytes
