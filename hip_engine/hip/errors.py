"""Every error code of the HIP runtime as a typed error that names the call.

Codes and texts from hip_runtime_api.h and hip_error.cpp of ROCm 6 and 7.
"""

import functools
from typing import NamedTuple

from hip_engine.errors import (
    CodeObjectError,
    DeviceFault,
    DeviceUnavailable,
    EngineError,
    LaunchError,
    OutOfDeviceMemory,
)

SUCCESS, NOT_READY = 0, 600


class Code(NamedTuple):
    """Name without the prefix hipError, and what hipGetErrorString says."""

    name: str
    text: str


CODES = {
    1: Code("InvalidValue", "invalid argument"),
    2: Code("OutOfMemory", "out of memory"),
    3: Code("NotInitialized", "initialization error"),
    4: Code("Deinitialized", "driver shutting down"),
    5: Code("ProfilerDisabled", "profiler disabled while using external profiling tool"),
    6: Code("ProfilerNotInitialized", "profiler is not initialized"),
    7: Code("ProfilerAlreadyStarted", "profiler already started"),
    8: Code("ProfilerAlreadyStopped", "profiler already stopped"),
    9: Code("InvalidConfiguration", "invalid configuration argument"),
    12: Code("InvalidPitchValue", "invalid pitch argument"),
    13: Code("InvalidSymbol", "invalid device symbol"),
    17: Code("InvalidDevicePointer", "invalid device pointer"),
    21: Code("InvalidMemcpyDirection", "invalid copy direction for memcpy"),
    35: Code("InsufficientDriver", "driver version is insufficient for runtime version"),
    52: Code("MissingConfiguration", "__global__ function call is not configured"),
    53: Code("PriorLaunchFailure", "unspecified launch failure in prior launch"),
    98: Code("InvalidDeviceFunction", "invalid device function"),
    100: Code("NoDevice", "no ROCm-capable device is detected"),
    101: Code("InvalidDevice", "invalid device ordinal"),
    200: Code("InvalidImage", "device kernel image is invalid"),
    201: Code("InvalidContext", "invalid device context"),
    202: Code("ContextAlreadyCurrent", "context is already current context"),
    205: Code("MapFailed", "mapping of buffer object failed"),
    206: Code("UnmapFailed", "unmapping of buffer object failed"),
    207: Code("ArrayIsMapped", "array is mapped"),
    208: Code("AlreadyMapped", "resource already mapped"),
    209: Code("NoBinaryForGpu", "no kernel image is available for execution on the device"),
    210: Code("AlreadyAcquired", "resource already acquired"),
    211: Code("NotMapped", "resource not mapped"),
    212: Code("NotMappedAsArray", "resource not mapped as array"),
    213: Code("NotMappedAsPointer", "resource not mapped as pointer"),
    214: Code("ECCNotCorrectable", "uncorrectable ECC error encountered"),
    215: Code("UnsupportedLimit", "limit is not supported on this architecture"),
    216: Code(
        "ContextAlreadyInUse", "exclusive-thread device already in use by a different thread"
    ),
    217: Code("PeerAccessUnsupported", "peer access is not supported between these two devices"),
    218: Code("InvalidKernelFile", "invalid kernel file"),
    219: Code("InvalidGraphicsContext", "invalid OpenGL or DirectX context"),
    300: Code("InvalidSource", "device kernel image is invalid"),
    301: Code("FileNotFound", "file not found"),
    302: Code("SharedObjectSymbolNotFound", "shared object symbol not found"),
    303: Code("SharedObjectInitFailed", "shared object initialization failed"),
    304: Code("OperatingSystem", "OS call failed or operation not supported on this OS"),
    400: Code("InvalidHandle", "invalid resource handle"),
    401: Code("IllegalState", "the operation cannot be performed in the present state"),
    500: Code("NotFound", "named symbol not found"),
    600: Code("NotReady", "device not ready"),
    700: Code("IllegalAddress", "an illegal memory access was encountered"),
    701: Code("LaunchOutOfResources", "too many resources requested for launch"),
    702: Code("LaunchTimeOut", "the launch timed out and was terminated"),
    704: Code("PeerAccessAlreadyEnabled", "peer access is already enabled"),
    705: Code("PeerAccessNotEnabled", "peer access has not been enabled"),
    708: Code("SetOnActiveProcess", "cannot set while device is active in this process"),
    709: Code("ContextIsDestroyed", "context is destroyed"),
    710: Code("Assert", "device-side assert triggered"),
    712: Code(
        "HostMemoryAlreadyRegistered", "part or all of the requested memory range is already mapped"
    ),
    713: Code(
        "HostMemoryNotRegistered", "pointer does not correspond to a registered memory region"
    ),
    719: Code("LaunchFailure", "unspecified launch failure"),
    720: Code("CooperativeLaunchTooLarge", "too many blocks in cooperative launch"),
    801: Code("NotSupported", "operation not supported"),
    900: Code("StreamCaptureUnsupported", "operation not permitted when stream is capturing"),
    901: Code(
        "StreamCaptureInvalidated", "operation failed due to a previous error during capture"
    ),
    902: Code("StreamCaptureMerge", "operation would result in a merge of separate captures"),
    903: Code("StreamCaptureUnmatched", "capture was not ended in the same stream as it began"),
    904: Code("StreamCaptureUnjoined", "capturing stream has unjoined work"),
    905: Code("StreamCaptureIsolation", "dependency created on uncaptured work in another stream"),
    906: Code(
        "StreamCaptureImplicit", "operation would make the legacy stream depend on a capture"
    ),
    907: Code("CapturedEvent", "operation not permitted on an event last recorded in a capture"),
    908: Code(
        "StreamCaptureWrongThread",
        "attempt to terminate a thread-local capture from another thread",
    ),
    910: Code("GraphExecUpdateFailure", "the graph update was not performed"),
    911: Code("InvalidChannelDescriptor", "invalid channel descriptor"),
    912: Code("InvalidTexture", "invalid texture"),
    999: Code("Unknown", "unknown error"),
    1052: Code("RuntimeMemory", "runtime memory call returned error"),
    1053: Code("RuntimeOther", "runtime call other than memory returned error"),
    1054: Code("Tbd", "TBD/unknown error"),
}
BY_NAME = {code.name: number for number, code in CODES.items()}

_FAMILIES = {
    OutOfDeviceMemory: (2, 1052),
    DeviceUnavailable: (3, 4, 35, 100, 101, 201),
    CodeObjectError: (98, 200, 209, 218, 300, 301, 302, 303, 500),
    DeviceFault: (53, 214, 700, 702, 710, 719),
    LaunchError: (1, 9, 12, 13, 17, 21, 52, 701, 720),
}
_FAMILY = {number: family for family, numbers in _FAMILIES.items() for number in numbers}


class HipError(EngineError):
    """A call of the HIP runtime that failed.

    Attributes:
      call: the function's name. code: its hipError_t. name: hipErrorInvalidValue and so on.
    """

    def __init__(self, call: str, code: int, text: str, context: str = ""):
        self.call, self.code, self.name = call, code, name_of(code)
        message = f"{context + ': ' if context else ''}{call}: {self.name} ({code}): {text}"
        if isinstance(self, DeviceFault):
            nowhere = dict.fromkeys(
                ("kernel", "instruction", "offset", "workgroup", "wave", "lane")
            )
            DeviceFault.__init__(self, message, **nowhere)
        else:
            super().__init__(message)


def name_of(code: int) -> str:
    if code == SUCCESS:
        return "hipSuccess"
    return f"hipError{CODES[code].name}" if code in CODES else f"hipError_t {code}"


@functools.cache
def type_of(code: int) -> type[HipError]:
    """The class of a code: named after it, and of the engine's family that it belongs to."""
    if code not in CODES:
        return HipError
    family = _FAMILY.get(code)
    bases = (HipError, family) if family else (HipError,)
    return type(f"HipError{CODES[code].name}", bases, {"__doc__": f"{CODES[code].text}."})


def error(call: str, code: int, text: str, context: str = "") -> HipError:
    """The typed error of a failed call; `context` says for what it was made."""
    return type_of(code)(call, code, text, context)
