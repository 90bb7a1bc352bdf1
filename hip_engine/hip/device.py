"""A real MI300X, through the C ABI of the HIP runtime (libamdhip64.so).

Not run in this project's tests, which have no such machine; the calls and constants are those of
hip_runtime_api.h of ROCm 6 and 7.
"""

import ctypes
import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hip_engine.device import AccessLog, Buffer, LaunchRecord
from hip_engine.errors import (
    CodeObjectError,
    DeviceFault,
    DeviceUnavailable,
    LaunchError,
    OutOfDeviceMemory,
)
from hip_engine.gfx942.code_object import Argument, CodeObject
from hip_engine.hip.arguments import pack

LIBRARY = "libamdhip64.so"
ARCHITECTURE = "gfx942"
SUCCESS, ERROR_OUT_OF_MEMORY = 0, 2
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
LAUNCH_PARAM_BUFFER_POINTER, LAUNCH_PARAM_BUFFER_SIZE, LAUNCH_PARAM_END = 1, 2, 3
# Room for hipDeviceProp_t, whose layout differs between releases: gcnArchName is searched in it.
PROPERTIES_BYTES = 8192
ARCH_NAME = re.compile(rb"gfx[0-9a-f]+[^\0]*")
REMEDY = "install ROCm 6 or later on a machine with an MI300X, or use --device=emulated"


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
    """The first gfx942 device of the machine."""

    def __init__(self):
        self._hip = _load_library()
        ordinal, architecture = self._find_device()
        self._call("hipSetDevice", ordinal)
        self.name = f"mi300x {ordinal} ({architecture})"
        self._live: dict[int, Buffer] = {}

    def _find_device(self) -> tuple[int, str]:
        count = ctypes.c_int(0)
        status = self._hip.hipGetDeviceCount(ctypes.byref(count))
        if status != SUCCESS or count.value == 0:
            raise DeviceUnavailable(
                f"the HIP runtime sees no GPU ({self._text(status)}): check /dev/kfd, the amdgpu "
                f"driver and the render group; {REMEDY}"
            )
        seen = []
        for ordinal in range(count.value):
            properties = ctypes.create_string_buffer(PROPERTIES_BYTES)
            self._call("hipGetDevicePropertiesR0600", properties, ordinal)
            match = ARCH_NAME.search(properties.raw)
            architecture = match[0].decode(errors="replace") if match else "unnamed"
            if architecture.split(":")[0] == ARCHITECTURE:
                return ordinal, architecture
            seen.append(architecture)
        raise DeviceUnavailable(
            f"no {ARCHITECTURE} among the GPUs of this machine ({', '.join(seen)}); {REMEDY}"
        )

    def allocate(self, nbytes: int, label: str) -> Buffer:
        pointer = ctypes.c_void_p()
        status = self._hip.hipMalloc(ctypes.byref(pointer), ctypes.c_size_t(max(nbytes, 1)))
        if status == ERROR_OUT_OF_MEMORY:
            raise OutOfDeviceMemory(f"{label}: {nbytes} bytes do not fit on {self.name}")
        self._check(status, "hipMalloc")
        buffer = Buffer(pointer.value, nbytes, label)
        self._live[buffer.address] = buffer
        return buffer

    def free(self, buffer: Buffer) -> None:
        self._require_live(buffer)
        del self._live[buffer.address]
        self._call("hipFree", ctypes.c_void_p(buffer.address))

    def write(self, buffer: Buffer, array: np.ndarray, offset_bytes: int = 0) -> None:
        source = np.ascontiguousarray(array)
        self._require_range(buffer, offset_bytes, source.nbytes)
        self._call(
            "hipMemcpy",
            ctypes.c_void_p(buffer.address + offset_bytes),
            ctypes.c_void_p(source.ctypes.data),
            ctypes.c_size_t(source.nbytes),
            HOST_TO_DEVICE,
        )

    def read(
        self, buffer: Buffer, dtype: np.dtype, count: int, offset_bytes: int = 0
    ) -> np.ndarray:
        result = np.empty(count, dtype)
        self._require_range(buffer, offset_bytes, result.nbytes)
        self._call(
            "hipMemcpy",
            ctypes.c_void_p(result.ctypes.data),
            ctypes.c_void_p(buffer.address + offset_bytes),
            ctypes.c_size_t(result.nbytes),
            DEVICE_TO_HOST,
        )
        return result

    def load(self, code_object: bytes) -> dict[str, HipKernel]:
        parsed = CodeObject.parse(code_object)
        module = ctypes.c_void_p()
        status = self._hip.hipModuleLoadData(ctypes.byref(module), code_object)
        if status != SUCCESS:
            raise CodeObjectError(f"the driver refused the code object: {self._text(status)}")
        kernels = {}
        for symbol, descriptor in parsed.kernels.items():
            function = ctypes.c_void_p()
            self._call("hipModuleGetFunction", ctypes.byref(function), module, symbol.encode())
            explicit = tuple(a for a in descriptor.arguments if not a.hidden)
            kernels[symbol] = HipKernel(symbol, parsed.sha256, explicit, function)
        return kernels

    def launch(
        self,
        kernel: HipKernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: Sequence,
        dynamic_lds_bytes: int = 0,
    ) -> LaunchRecord:
        """Enqueues on the null stream. Errors of the kernel itself show at the next `synchronize`.

        Raises:
          LaunchError: arguments, grid or block refused.
        """
        packed = pack(kernel.symbol, kernel.explicit, args)
        size = ctypes.c_size_t(len(packed))
        holder = ctypes.create_string_buffer(packed, len(packed))
        extra = (ctypes.c_void_p * 5)(
            LAUNCH_PARAM_BUFFER_POINTER,
            ctypes.addressof(holder),
            LAUNCH_PARAM_BUFFER_SIZE,
            ctypes.addressof(size),
            LAUNCH_PARAM_END,
        )
        status = self._hip.hipModuleLaunchKernel(
            kernel.function, *grid, *block, dynamic_lds_bytes, None, None, extra
        )
        if status != SUCCESS:
            raise LaunchError(f"{kernel.symbol} grid {grid} block {block}: {self._text(status)}")
        return LaunchRecord(kernel.symbol, kernel.code_object_sha256, tuple(grid), tuple(block))

    def synchronize(self) -> None:
        status = self._hip.hipDeviceSynchronize()
        if status != SUCCESS:
            raise DeviceFault(
                f"the device reports {self._text(status)}; run on the emulated device to see where",
                kernel=None,
                instruction=None,
                offset=None,
                workgroup=None,
                wave=None,
                lane=None,
            )

    def watch(self) -> AbstractContextManager[AccessLog]:
        raise DeviceUnavailable(
            "a GPU does not report what its kernels read and write: use --device=emulated"
        )

    def _require_live(self, buffer: Buffer):
        if self._live.get(buffer.address) != buffer:
            raise LaunchError(f"{buffer.label} is not an allocation of {self.name}")

    def _require_range(self, buffer: Buffer, offset_bytes: int, nbytes: int):
        self._require_live(buffer)
        if offset_bytes < 0 or offset_bytes + nbytes > buffer.nbytes:
            raise LaunchError(
                f"bytes {offset_bytes}..{offset_bytes + nbytes} of {buffer.label}, which has "
                f"{buffer.nbytes}"
            )

    def _call(self, function: str, *args):
        self._check(getattr(self._hip, function)(*args), function)

    def _check(self, status: int, function: str):
        if status != SUCCESS:
            raise LaunchError(f"{function} on {self.name}: {self._text(status)}")

    def _text(self, status: int) -> str:
        return self._hip.hipGetErrorString(status).decode()


def _load_library() -> ctypes.CDLL:
    rocm = Path(os.environ.get("ROCM_PATH") or "/opt/rocm") / "lib" / LIBRARY
    for name in (str(rocm), LIBRARY):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.hipGetErrorString.restype = ctypes.c_char_p
        status = library.hipInit(0)
        if status != SUCCESS:
            text = library.hipGetErrorString(status).decode()
            raise DeviceUnavailable(f"{name} is here, but hipInit says {text}; {REMEDY}")
        return library
    raise DeviceUnavailable(f"no HIP runtime ({LIBRARY}) in {rocm.parent} or on the path; {REMEDY}")
