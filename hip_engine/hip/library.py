"""libamdhip64 through ctypes: the calls this project makes, with their types, and their errors."""

import ctypes
import os
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_uint, c_void_p
from pathlib import Path

from hip_engine.errors import DeviceUnavailable
from hip_engine.hip import errors

NAME = "libamdhip64.so"
REMEDY = "install ROCm 6 or later on a machine with an MI300X, or use --device=emulated"

_OUT = POINTER(c_void_p)
_LAUNCH = (c_void_p, *[c_uint] * 7, c_void_p, _OUT, _OUT)
# Parameter types, as in hip_runtime_api.h of ROCm 6 and 7; every call returns hipError_t.
SIGNATURES = {
    "hipInit": (c_uint,),
    "hipRuntimeGetVersion": (POINTER(c_int),),
    "hipGetDeviceCount": (POINTER(c_int),),
    "hipSetDevice": (c_int,),
    "hipGetDevicePropertiesR0600": (c_void_p, c_int),
    "hipDeviceSynchronize": (),
    "hipDeviceReset": (),
    "hipMalloc": (_OUT, c_size_t),
    "hipFree": (c_void_p,),
    "hipHostMalloc": (_OUT, c_size_t, c_uint),
    "hipHostFree": (c_void_p,),
    "hipMemGetInfo": (POINTER(c_size_t), POINTER(c_size_t)),
    "hipMemcpy": (c_void_p, c_void_p, c_size_t, c_int),
    "hipMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "hipMemsetAsync": (c_void_p, c_int, c_size_t, c_void_p),
    "hipStreamCreateWithFlags": (_OUT, c_uint),
    "hipStreamDestroy": (c_void_p,),
    "hipStreamSynchronize": (c_void_p,),
    "hipStreamQuery": (c_void_p,),
    "hipStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "hipEventCreate": (_OUT,),
    "hipEventDestroy": (c_void_p,),
    "hipEventRecord": (c_void_p, c_void_p),
    "hipEventSynchronize": (c_void_p,),
    "hipEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "hipModuleLoadData": (_OUT, c_char_p),
    "hipModuleUnload": (c_void_p,),
    "hipModuleGetFunction": (_OUT, c_void_p, c_char_p),
    "hipModuleGetGlobal": (_OUT, POINTER(c_size_t), c_void_p, c_char_p),
    "hipModuleLaunchKernel": _LAUNCH,
    "hipStreamBeginCapture": (c_void_p, c_int),
    "hipStreamEndCapture": (c_void_p, _OUT),
    "hipGraphInstantiate": (_OUT, c_void_p, _OUT, c_void_p, c_size_t),
    "hipGraphLaunch": (c_void_p, c_void_p),
    "hipGraphDestroy": (c_void_p,),
    "hipGraphExecDestroy": (c_void_p,),
    "hipGetLastError": (),
}


class Hip:
    """The loaded runtime. `call` raises what fails; `status` returns it."""

    def __init__(self, library: ctypes.CDLL, path: str):
        self._library, self.path = library, path
        library.hipGetErrorString.restype = c_char_p
        library.hipGetErrorString.argtypes = (c_int,)
        for name, types in SIGNATURES.items():
            try:
                getattr(library, name).argtypes = types
            except AttributeError:
                raise DeviceUnavailable(f"{path} has no {name}: it is too old; {REMEDY}") from None

    def status(self, name: str, *args) -> int:
        return getattr(self._library, name)(*args)

    def call(self, name: str, *args, context: str = "") -> None:
        """Make one call.

        Raises:
          HipError: of the type of its code, with the call's name and `context`.
        """
        status = self.status(name, *args)
        if status != errors.SUCCESS:
            raise errors.error(name, status, self.text(status), context)

    def make(self, name: str, *args, context: str = "") -> c_void_p:
        """A call whose first parameter is where the new handle or address goes."""
        made = c_void_p()
        self.call(name, ctypes.byref(made), *args, context=context)
        return made

    def text(self, status: int) -> str:
        return self._library.hipGetErrorString(status).decode(errors="replace")


def load() -> Hip:
    """The HIP runtime of ROCM_PATH or /opt/rocm, else that of the loader's path.

    Raises:
      DeviceUnavailable: there is none, it does not start, or it is too old.
    """
    rocm = Path(os.environ.get("ROCM_PATH") or "/opt/rocm") / "lib" / NAME
    for path in (str(rocm), NAME):
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        hip = Hip(library, path)
        status = hip.status("hipInit", 0)
        if status != errors.SUCCESS:
            raise DeviceUnavailable(
                f"{path} is here, but hipInit says {hip.text(status)}; {REMEDY}"
            )
        return hip
    raise DeviceUnavailable(f"no HIP runtime ({NAME}) in {rocm.parent} or on the path; {REMEDY}")
