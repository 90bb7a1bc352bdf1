"""Memory: allocations of three kinds in one address space, copies and fills."""

import ctypes
import struct

from hip_engine.gfx942.hip_runtime.device_calls import available_bytes
from hip_engine.gfx942.hip_runtime.runtime import (
    DEVICE,
    HOST,
    MANAGED,
    HipFailure,
    Runtime,
    alias,
    api,
    put_int,
    put_pointer,
    put_size,
)
from hip_engine.gfx942.hip_runtime.stream_calls import NULL_STREAM, enqueue, synchronous
from hip_engine.gfx942.memory import ARENA_BYTES

HOST_TO_HOST, HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, DEFAULT = range(5)
NO_COPY_KIND_DEVICE = 1024  # hipMemcpyDeviceToDeviceNoCU
MEMORY_TYPES = {HOST: 1, DEVICE: 2, MANAGED: 3}
PITCH_ALIGNMENT = 256
CHUNK_BYTES = 1 << 26  # copies and fills need no more host memory than this


@api
def hipMalloc(hip: Runtime, pointer: int, nbytes: int):
    _allocate(hip, pointer, nbytes, DEVICE)


@api
def hipExtMallocWithFlags(hip: Runtime, pointer: int, nbytes: int, flags: int):
    _allocate(hip, pointer, nbytes, DEVICE, flags)


@api
def hipMallocManaged(hip: Runtime, pointer: int, nbytes: int, flags: int):
    _allocate(hip, pointer, nbytes, MANAGED, flags)


@api
@alias("hipHostAlloc")
def hipHostMalloc(hip: Runtime, pointer: int, nbytes: int, flags: int):
    _allocate(hip, pointer, nbytes, HOST, flags)


@api
@alias("hipMemAllocHost")
def hipMallocHost(hip: Runtime, pointer: int, nbytes: int):
    _allocate(hip, pointer, nbytes, HOST)


@api
def hipMallocAsync(hip: Runtime, pointer: int, nbytes: int, stream: int):
    hip.streams[stream] if stream > 2 else None
    _allocate(hip, pointer, nbytes, DEVICE)


@api
def hipMallocPitch(hip: Runtime, pointer: int, pitch: int, width: int, height: int):
    row = -(-width // PITCH_ALIGNMENT) * PITCH_ALIGNMENT
    put_size(pitch, row)
    _allocate(hip, pointer, row * height, DEVICE)


def _allocate(hip: Runtime, pointer: int, nbytes: int, kind: str, flags: int = 0) -> None:
    synchronous(hip)
    put_pointer(pointer, 0)
    put_pointer(pointer, hip.allocate(nbytes, kind, flags))


@api
@alias("hipHostFree", "hipFreeHost")
def hipFree(hip: Runtime, address: int):
    synchronous(hip)
    hip.free(address)


@api
def hipFreeAsync(hip: Runtime, address: int, stream: int):
    enqueue(hip, stream, lambda: hip.free(address))


@api
def hipHostGetDevicePointer(hip: Runtime, pointer: int, host: int, flags: int):
    hip.require(host, 0)
    put_pointer(pointer, host)


@api
def hipHostGetFlags(hip: Runtime, flags: int, host: int):
    hip.require(host, 0)
    put_int(flags, hip.find(host).flags)


@api
def hipHostRegister(hip: Runtime, host: int, nbytes: int, flags: int):
    raise HipFailure("NotSupported", "kernels see only memory that hipHostMalloc made: use that")


@api
def hipHostUnregister(hip: Runtime, host: int):
    raise HipFailure("HostMemoryNotRegistered", f"0x{host:x} was never registered")


@api
def hipMemGetInfo(hip: Runtime, free: int, total: int):
    put_size(free, available_bytes(hip))
    put_size(total, ARENA_BYTES)


@api
def hipMemPtrGetInfo(hip: Runtime, address: int, nbytes: int):
    put_size(nbytes, hip.require(address, 0)[0].nbytes)


@api
def hipMemGetAddressRange(hip: Runtime, base: int, nbytes: int, address: int):
    buffer, _ = hip.require(address, 0)
    for pointer, value in ((base, buffer.address), (nbytes, buffer.nbytes)):
        if pointer:
            put_size(pointer, value)


@api
def hipPointerGetAttributes(hip: Runtime, attributes: int, address: int):
    """hipPointerAttribute_t of ROCm 6: type, device, both pointers, managed, flags."""
    found = hip.find(address)
    if not attributes or not address:
        raise HipFailure("InvalidValue", "a null pointer")
    if found:
        managed = int(found.kind == MANAGED)
        fields = (MEMORY_TYPES[found.kind], 0, address, address, managed, found.flags)
        if found.kind == DEVICE:
            fields = (*fields[:3], 0, *fields[4:])
    else:
        fields = (0, -2, 0, 0, 0, 0)
    raw = struct.pack("<iiQQiI", *fields)
    ctypes.memmove(attributes, raw, len(raw))


# ---- Copies


def copy(hip: Runtime, target: int, source: int, nbytes: int, kind: int) -> None:
    """One copy, now. A side that `kind` calls device must lie in an allocation."""
    if kind not in range(5) and kind != NO_COPY_KIND_DEVICE:
        raise HipFailure("InvalidMemcpyDirection", f"hipMemcpyKind {kind}")
    if nbytes == 0:
        return
    if not target or not source:
        raise HipFailure("InvalidValue", "a copy from or to the null pointer")
    device = (DEVICE_TO_DEVICE, NO_COPY_KIND_DEVICE)
    to_device = kind in (HOST_TO_DEVICE, *device) or hip.find(target)
    if to_device:
        hip.require(target, nbytes)
    from_device = kind in (DEVICE_TO_HOST, *device) or hip.find(source)
    if from_device:
        hip.require(source, nbytes)
    for begin in _chunks(target, source, nbytes):
        length = min(CHUNK_BYTES, nbytes - begin)
        if from_device:
            data = hip.read(source + begin, length)
        else:
            data = ctypes.string_at(source + begin, length)
        if to_device:
            hip.write(target + begin, data)
        else:
            ctypes.memmove(target + begin, data, length)


def _chunks(target: int, source: int, nbytes: int) -> range:
    """Offsets of the pieces of a copy, from the end where the ranges overlap that way."""
    pieces = range(0, nbytes, CHUNK_BYTES)
    return pieces[::-1] if source < target < source + nbytes else pieces


@api
def hipMemcpy(hip: Runtime, target: int, source: int, nbytes: int, kind: int):
    synchronous(hip)
    enqueue(hip, NULL_STREAM, lambda: copy(hip, target, source, nbytes, kind))


@api
@alias("hipMemcpyWithStream")
def hipMemcpyAsync(hip: Runtime, target: int, source: int, nbytes: int, kind: int, stream: int):
    enqueue(hip, stream, lambda: copy(hip, target, source, nbytes, kind))


@api
def hipMemcpyHtoD(hip: Runtime, target: int, source: int, nbytes: int):
    hipMemcpy(hip, target, source, nbytes, HOST_TO_DEVICE)


@api
def hipMemcpyDtoH(hip: Runtime, target: int, source: int, nbytes: int):
    hipMemcpy(hip, target, source, nbytes, DEVICE_TO_HOST)


@api
def hipMemcpyDtoD(hip: Runtime, target: int, source: int, nbytes: int):
    hipMemcpy(hip, target, source, nbytes, DEVICE_TO_DEVICE)


@api
def hipMemcpyHtoDAsync(hip: Runtime, target: int, source: int, nbytes: int, stream: int):
    hipMemcpyAsync(hip, target, source, nbytes, HOST_TO_DEVICE, stream)


@api
def hipMemcpyDtoHAsync(hip: Runtime, target: int, source: int, nbytes: int, stream: int):
    hipMemcpyAsync(hip, target, source, nbytes, DEVICE_TO_HOST, stream)


@api
def hipMemcpyDtoDAsync(hip: Runtime, target: int, source: int, nbytes: int, stream: int):
    hipMemcpyAsync(hip, target, source, nbytes, DEVICE_TO_DEVICE, stream)


@api
def hipMemcpyPeer(hip: Runtime, target: int, to: int, source: int, origin: int, nbytes: int):
    hipMemcpyPeerAsync(hip, target, to, source, origin, nbytes, NULL_STREAM)


@api
def hipMemcpyPeerAsync(hip: Runtime, target: int, to, source: int, origin, nbytes, stream: int):
    if to or origin:
        raise HipFailure("InvalidDevice", f"devices {to} and {origin}: there is one, 0")
    hipMemcpyAsync(hip, target, source, nbytes, DEVICE_TO_DEVICE, stream)


def _copy_2d(hip: Runtime, target, target_pitch, source, source_pitch, width, height, kind) -> None:
    if width > min(target_pitch, source_pitch) and height > 1:
        raise HipFailure("InvalidPitchValue", f"rows of {width} bytes in a smaller pitch")
    for row in range(height):
        copy(hip, target + row * target_pitch, source + row * source_pitch, width, kind)


@api
def hipMemcpy2D(
    hip: Runtime, a: int, a_pitch: int, b: int, b_pitch: int, w: int, h: int, kind: int
):
    synchronous(hip)
    enqueue(hip, NULL_STREAM, lambda: _copy_2d(hip, a, a_pitch, b, b_pitch, w, h, kind))


@api
def hipMemcpy2DAsync(hip: Runtime, a: int, a_pitch, b: int, b_pitch, w, h, kind, stream: int):
    enqueue(hip, stream, lambda: _copy_2d(hip, a, a_pitch, b, b_pitch, w, h, kind))


# ---- Fills


def fill(hip: Runtime, target: int, value: int, element_bytes: int, count: int) -> None:
    if count:
        element = (value & ((1 << 8 * element_bytes) - 1)).to_bytes(element_bytes, "little")
        hip.require(target, element_bytes * count)
        whole = CHUNK_BYTES // element_bytes
        for begin in range(0, count, whole):
            some = element * min(whole, count - begin)
            hip.write(target + begin * element_bytes, some)


def _fill_2d(hip: Runtime, target: int, pitch: int, value: int, width: int, height: int) -> None:
    for row in range(height):
        fill(hip, target + row * pitch, value, 1, width)


@api
@alias("hipMemsetD8")
def hipMemset(hip: Runtime, target: int, value: int, nbytes: int):
    enqueue(hip, NULL_STREAM, lambda: fill(hip, target, value, 1, nbytes))


@api
@alias("hipMemsetD8Async")
def hipMemsetAsync(hip: Runtime, target: int, value: int, nbytes: int, stream: int):
    enqueue(hip, stream, lambda: fill(hip, target, value, 1, nbytes))


@api
def hipMemsetD16(hip: Runtime, target: int, value: int, count: int):
    enqueue(hip, NULL_STREAM, lambda: fill(hip, target, value, 2, count))


@api
def hipMemsetD16Async(hip: Runtime, target: int, value: int, count: int, stream: int):
    enqueue(hip, stream, lambda: fill(hip, target, value, 2, count))


@api
def hipMemsetD32(hip: Runtime, target: int, value: int, count: int):
    enqueue(hip, NULL_STREAM, lambda: fill(hip, target, value, 4, count))


@api
def hipMemsetD32Async(hip: Runtime, target: int, value: int, count: int, stream: int):
    enqueue(hip, stream, lambda: fill(hip, target, value, 4, count))


@api
def hipMemset2D(hip: Runtime, target: int, pitch: int, value: int, width: int, height: int):
    enqueue(hip, NULL_STREAM, lambda: _fill_2d(hip, target, pitch, value, width, height))


@api
def hipMemset2DAsync(hip: Runtime, target: int, pitch, value, width, height, stream: int):
    enqueue(hip, stream, lambda: _fill_2d(hip, target, pitch, value, width, height))


@api
@alias("hipMemPrefetchAsync")
def hipMemAdvise(hip: Runtime, address: int, nbytes: int, advice: int, device: int):
    """A hint about where managed memory should live: here it lives in one place."""
    hip.require(address, nbytes)
