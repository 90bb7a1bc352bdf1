"""Enqueues launches, with arguments from any of the three forms that HIP takes."""

import ctypes

from hip_engine.errors import DeviceFault, LaunchError
from hip_engine.gfx942.arguments import MAX_LDS_BYTES, check_geometry
from hip_engine.gfx942.dispatch import EmulatedKernel
from hip_engine.gfx942.hip_runtime.runtime import HipFailure, Runtime
from hip_engine.gfx942.hip_runtime.stream_calls import enqueue

BUFFER_POINTER, BUFFER_SIZE, END = 1, 2, 3
MAX_KERNARG_BYTES = 1 << 16


def launch(hip: Runtime, kernel: EmulatedKernel, grid, block, lds: int, stream: int, raw: bytes):
    """Enqueue a launch. A fault shows where the host next waits, as on the hardware."""
    if lds + kernel.descriptor.lds_bytes > MAX_LDS_BYTES:
        raise HipFailure("InvalidValue", f"{kernel.symbol}: more than {MAX_LDS_BYTES} bytes of LDS")
    try:
        check_geometry(kernel, grid, block, lds)
    except LaunchError as error:
        raise HipFailure("InvalidConfiguration", str(error)) from error

    def work():
        try:
            hip.device.launch(kernel, grid, block, raw, lds)
        except DeviceFault as error:
            hip.record_fault(error)

    enqueue(hip, stream, work)


def _pointers(address: int, count: int) -> tuple[int, ...]:
    return tuple((ctypes.c_uint64 * count).from_address(address))


def from_pointers(kernel: EmulatedKernel, parameters: int) -> bytes:
    """Explicit arguments from an array of pointers to their values."""
    explicit = [a for a in kernel.descriptor.arguments if not a.hidden]
    if explicit and not parameters:
        raise HipFailure("InvalidValue", f"{kernel.symbol} takes {len(explicit)} arguments: none")
    if not explicit and kernel.descriptor.kernarg_bytes and parameters:
        raise HipFailure("InvalidValue", f"{kernel.symbol} has no metadata: pass a raw buffer")
    raw = bytearray(max((a.offset + a.size for a in explicit), default=0))
    values = _pointers(parameters, len(explicit)) if explicit else ()
    for argument, value in zip(explicit, values, strict=True):
        if not value:
            raise HipFailure("InvalidValue", f"{kernel.symbol}: {argument.name} is a null pointer")
        raw[argument.offset : argument.offset + argument.size] = ctypes.string_at(
            value, argument.size
        )
    return bytes(raw)


def from_extra(extra: int) -> bytes:
    """The raw buffer that HIP_LAUNCH_PARAM_* keys describe."""
    buffer, nbytes = 0, 0
    for position in range(0, 8, 2):
        key = _pointers(extra + 8 * position, 1)[0]
        if key == END:
            break
        (value,) = _pointers(extra + 8 * position + 8, 1)
        if key == BUFFER_POINTER:
            buffer = value
        elif key == BUFFER_SIZE and value:
            (nbytes,) = _pointers(value, 1)
        else:
            raise HipFailure("InvalidValue", f"launch parameter key {key}")
    if nbytes > MAX_KERNARG_BYTES or (nbytes and not buffer):
        raise HipFailure("InvalidValue", f"a buffer of {nbytes} bytes of arguments")
    return ctypes.string_at(buffer, nbytes) if nbytes else b""


def arguments_of(kernel: EmulatedKernel, parameters: int, extra: int) -> bytes:
    if parameters and extra:
        raise HipFailure("InvalidValue", "both kernelParams and extra")
    return from_extra(extra) if extra else from_pointers(kernel, parameters)
