"""Answers the calls of libamdhip64.c: one callback, a table of handlers, errors to codes."""

import ctypes
import functools
import sys
import threading
import traceback

from hip_engine.errors import (
    CodeObjectError,
    CompilerMissing,
    DeviceFault,
    LaunchError,
    OutOfDeviceMemory,
    UnsupportedInstruction,
)
from hip_engine.gfx942.code_object import WrongProcessor
from hip_engine.gfx942.hip_runtime import (  # noqa: F401  (they fill HANDLERS)
    device_calls,
    graph_calls,
    memory_calls,
    module_calls,
    program_calls,
    stream_calls,
)
from hip_engine.gfx942.hip_runtime.runtime import HANDLERS, HipFailure, Runtime, api
from hip_engine.hip.errors import BY_NAME, name_of

# First match wins: subclasses stand before their bases.
CODE_OF = (
    (OutOfDeviceMemory, "OutOfMemory"),
    (WrongProcessor, "NoBinaryForGpu"),
    (UnsupportedInstruction, "NotSupported"),
    (CodeObjectError, "InvalidImage"),
    (LaunchError, "InvalidValue"),
    (CompilerMissing, "NotInitialized"),
    (MemoryError, "OutOfMemory"),
    (NotImplementedError, "NotSupported"),
)
UNKNOWN = 999

_lock = threading.RLock()
STRINGS = (b"hipGetErrorString", b"hipGetErrorName")
_texts: dict[bytes, ctypes.Array] = {}
_served = []  # callbacks given to the library must not be collected


@functools.cache
def runtime() -> Runtime:
    """The runtime of this process, made at the first call."""
    return Runtime()


def attach(slot: int) -> None:
    """Put the callback into the library's function pointer at address `slot`."""
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint64))
    _served.append(kind(serve))
    ctypes.c_void_p.from_address(slot).value = ctypes.cast(_served[-1], ctypes.c_void_p).value


def serve(name: bytes, arguments) -> int:
    """hipError_t of one call (or the address of a string); nothing escapes into C."""
    with _lock:
        try:
            hip = runtime()
        except Exception as error:
            if name not in STRINGS:
                print(f"libamdhip64 (emulated gfx942): {error}", file=sys.stderr, flush=True)
                return BY_NAME["NotInitialized"]
            _texts[name] = ctypes.create_string_buffer(f"initialization error: {error}".encode())
            return ctypes.addressof(_texts[name])
        return _answer(hip, name.decode(), arguments)


def _answer(hip: Runtime, call: str, arguments) -> int:
    try:
        function, arity = HANDLERS[call]
        return function(hip, *arguments[:arity]) or 0
    except HipFailure as error:
        code, reason = error.code, error.reason
    except DeviceFault as error:  # a sanitizer's finding where the host reads
        hip.record_fault(error)
        code, reason = hip.fault.code, str(error)
    except tuple(kind for kind, _ in CODE_OF) as error:
        code = next(BY_NAME[name] for kind, name in CODE_OF if isinstance(error, kind))
        reason = str(error)
    except Exception as error:
        traceback.print_exc()
        code, reason = UNKNOWN, f"{type(error).__name__}: {error}"
    hip.explain(code, f"{call}: {reason}")
    return code


@api
def hipGetErrorString(hip: Runtime, code: int) -> int:
    return hip.text(hip.error_text(code & 0xFFFFFFFF))


@api
def hipGetErrorName(hip: Runtime, code: int) -> int:
    return hip.text(name_of(code & 0xFFFFFFFF))
