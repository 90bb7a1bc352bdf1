"""Calls about the device: one MI300X, described as AMD's driver describes it."""

import ctypes
import struct

from hip_engine.gfx942.hip_runtime.runtime import (
    HipFailure,
    Runtime,
    alias,
    api,
    put_int,
    put_size,
)
from hip_engine.gfx942.memory import ARENA_BYTES
from hip_engine.toolchain import TARGET

NAME = b"AMD Instinct MI300X (emulated)"
ARCHITECTURE = f"{TARGET}:sramecc+:xnack-".encode()
VERSION = 60_300_000  # major * 10^7 + minor * 10^5 + patch
BUS_ID, UUID = b"0000:00:00.0", b"GPU-emulated0000"
KIB = 1 << 10
LIMITS = {0: 16 * KIB, 1: 1 << 20, 2: 8 << 20}  # stack, printf buffer, heap

# name: (R0600 offset, R0000 offset, struct code, value); offsets of hipDeviceProp_t of ROCm 6, 5.
PROPERTIES = {
    "name": (0, 0, "256s", NAME),
    "totalGlobalMem": (288, 256, "Q", ARENA_BYTES),
    "sharedMemPerBlock": (296, 264, "Q", 64 * KIB),
    "regsPerBlock": (304, 272, "i", 65536),
    "warpSize": (308, 276, "i", 64),
    "memPitch": (312, 712, "Q", 0x7FFFFFFF),
    "maxThreadsPerBlock": (320, 280, "i", 1024),
    "maxThreadsDim": (324, 284, "3i", (1024, 1024, 1024)),
    "maxGridSize": (336, 296, "3i", (0x7FFFFFFF, 65536, 65536)),
    "clockRate": (348, 308, "i", 2_100_000),
    "totalConstMem": (352, 320, "Q", 0x7FFFFFFF),
    "major": (360, 328, "i", 9),
    "minor": (364, 332, "i", 4),
    "multiProcessorCount": (388, 336, "i", 304),
    "canMapHostMemory": (400, 388, "i", 1),
    "concurrentKernels": (576, 360, "i", 1),
    "unifiedAddressing": (604, None, "i", 1),
    "memoryClockRate": (608, 312, "i", 1_300_000),
    "memoryBusWidth": (612, 316, "i", 8192),
    "l2CacheSize": (616, 340, "i", 4096 * KIB),
    "maxThreadsPerMultiProcessor": (624, 344, "i", 2048),
    "sharedMemPerMultiprocessor": (640, None, "Q", 64 * KIB),
    "regsPerMultiprocessor": (648, None, "i", 131072),
    "managedMemory": (652, 772, "i", 1),
    "gcnArchName": (1160, 396, "256s", ARCHITECTURE),
    "maxSharedMemoryPerMultiProcessor": (1416, 376, "Q", 64 * KIB),
    "clockInstructionRate": (1424, 352, "i", 100_000),
}
BYTES_R0600, BYTES_R0000 = 1472, 792

# hipDeviceAttribute_t (ROCm 5 to 7) to a property above, or its value.
ATTRIBUTES = {
    2: 8,  # async engines
    3: "canMapHostMemory",
    5: "clockRate",
    8: "concurrentKernels",
    19: "l2CacheSize",
    23: "major",
    24: "managedMemory",
    25: 32,  # blocks a multiprocessor
    26: 1024,
    27: 1024,
    28: 1024,
    29: 0x7FFFFFFF,
    30: 65536,
    31: 65536,
    56: "maxThreadsPerBlock",
    57: "maxThreadsPerMultiProcessor",
    58: "memPitch",
    59: "memoryBusWidth",
    60: "memoryClockRate",
    61: "minor",
    63: "multiProcessorCount",
    71: "regsPerBlock",
    72: "regsPerMultiprocessor",
    74: "sharedMemPerBlock",
    76: "sharedMemPerMultiprocessor",
    83: "totalConstMem",
    85: "unifiedAddressing",
    87: "warpSize",
    10000: "clockInstructionRate",
    10002: "maxSharedMemoryPerMultiProcessor",
}


def _require_device(ordinal: int) -> None:
    if ordinal != 0:
        raise HipFailure(
            "InvalidDevice", f"device {ctypes.c_int32(ordinal).value}: there is one, 0"
        )


def _store_text(text: bytes, target: int, length: int) -> None:
    if not target or not length:
        raise HipFailure("InvalidValue", "no room for the text")
    stored = text[: length - 1] + b"\0"
    ctypes.memmove(target, stored, len(stored))


def available_bytes(hip: Runtime) -> int:
    """What is left of the device, and no more than this machine has."""
    with open("/proc/meminfo") as file:
        lines = dict(line.split(":") for line in file)
    here = int(lines["MemAvailable"].split()[0]) * KIB
    return max(0, min(ARENA_BYTES - hip.used_bytes, here))


def properties(release: int) -> bytes:
    """hipDeviceProp_t as of R0600 (`release` 0) or R0000 (1)."""
    raw = bytearray((BYTES_R0600, BYTES_R0000)[release])
    for *offsets, code, value in PROPERTIES.values():
        if offsets[release] is not None:
            values = value if isinstance(value, tuple) else (value,)
            struct.pack_into("<" + code, raw, offsets[release], *values)
    return bytes(raw)


@api
def hipInit(hip: Runtime, flags: int):
    if flags:
        raise HipFailure("InvalidValue", f"hipInit with flags {flags}")


@api
@alias("hipRuntimeGetVersion")
def hipDriverGetVersion(hip: Runtime, version: int):
    put_int(version, VERSION)


@api
def hipGetDeviceCount(hip: Runtime, count: int):
    put_int(count, 1)


@api
def hipGetDevice(hip: Runtime, ordinal: int):
    put_int(ordinal, 0)


@api
def hipSetDevice(hip: Runtime, ordinal: int):
    _require_device(ordinal)


@api
def hipDeviceGet(hip: Runtime, device: int, ordinal: int):
    _require_device(ordinal)
    put_int(device, 0)


@api
def hipDeviceGetName(hip: Runtime, name: int, length: int, device: int):
    _require_device(device)
    _store_text(NAME, name, length)


@api
def hipDeviceTotalMem(hip: Runtime, nbytes: int, device: int):
    _require_device(device)
    put_size(nbytes, ARENA_BYTES)


@api
def hipDeviceComputeCapability(hip: Runtime, major: int, minor: int, device: int):
    _require_device(device)
    put_int(major, 9)
    put_int(minor, 4)


@api
def hipDeviceGetAttribute(hip: Runtime, value: int, attribute: int, device: int):
    _require_device(device)
    found = ATTRIBUTES.get(attribute, 0)
    found = PROPERTIES[found][3] if isinstance(found, str) else found
    put_int(value, min(found, 0x7FFFFFFF))


@api
def hipGetDevicePropertiesR0600(hip: Runtime, result: int, device: int):
    _fill(result, device, 0)


@api
@alias("hipGetDeviceProperties")
def hipGetDevicePropertiesR0000(hip: Runtime, result: int, device: int):
    _fill(result, device, 1)


def _fill(result: int, device: int, release: int) -> None:
    _require_device(device)
    if not result:
        raise HipFailure("InvalidValue", "a null pointer for the properties")
    raw = properties(release)
    ctypes.memmove(result, raw, len(raw))


@api
def hipDeviceCanAccessPeer(hip: Runtime, result: int, device: int, peer: int):
    _require_device(device)
    put_int(result, 0)


@api
def hipDeviceEnablePeerAccess(hip: Runtime, peer: int, flags: int):
    raise HipFailure("PeerAccessUnsupported", "there is one device")


@api
def hipDeviceDisablePeerAccess(hip: Runtime, peer: int):
    raise HipFailure("PeerAccessNotEnabled", "there is one device")


@api
def hipDeviceGetPCIBusId(hip: Runtime, text: int, length: int, device: int):
    _require_device(device)
    _store_text(BUS_ID, text, length)


@api
def hipDeviceGetUuid(hip: Runtime, uuid: int, device: int):
    _require_device(device)
    if not uuid:
        raise HipFailure("InvalidValue", "a null pointer for the UUID")
    ctypes.memmove(uuid, UUID, len(UUID))


@api
def hipDeviceGetLimit(hip: Runtime, value: int, limit: int):
    if limit not in LIMITS:
        raise HipFailure("UnsupportedLimit", f"hipLimit_t {limit}")
    put_size(value, LIMITS[limit])


@api
def hipDeviceSetLimit(hip: Runtime, limit: int, value: int):
    if limit not in LIMITS:
        raise HipFailure("UnsupportedLimit", f"hipLimit_t {limit}")


@api
def hipDeviceGetStreamPriorityRange(hip: Runtime, least: int, greatest: int):
    for pointer, value in ((least, 1), (greatest, -1)):
        if pointer:
            put_int(pointer, value)


@api
def hipGetDeviceFlags(hip: Runtime, flags: int):
    put_int(flags, 0)


@api
@alias("hipDeviceSetCacheConfig")
def hipSetDeviceFlags(hip: Runtime, flags: int):
    """Hints about waiting and caches: nothing waits here."""


@api
@alias("hipProfilerStop")
def hipProfilerStart(hip: Runtime):
    """No profiler is attached."""
