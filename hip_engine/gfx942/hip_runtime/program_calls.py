"""Compiled HIP programs: registration, <<<>>> launches, device symbols, what a kernel needs."""

import ctypes
import struct

from hip_engine.gfx942.arguments import MAX_LDS_BYTES
from hip_engine.gfx942.dispatch import EmulatedKernel
from hip_engine.gfx942.hip_runtime.images import image_at, peek
from hip_engine.gfx942.hip_runtime.launches import from_pointers, launch
from hip_engine.gfx942.hip_runtime.memory_calls import copy
from hip_engine.gfx942.hip_runtime.module_calls import function_of, open_module
from hip_engine.gfx942.hip_runtime.runtime import (
    FatBinary,
    HipFailure,
    Runtime,
    alias,
    api,
    get_text,
    put_int,
    put_pointer,
    put_size,
)
from hip_engine.gfx942.hip_runtime.stream_calls import (
    NULL_STREAM,
    enqueue,
    hipEventRecord,
    synchronous,
)
from hip_engine.gfx942.module import Module
from hip_engine.gfx942.occupancy import COMPUTE_UNITS, workgroups_per_cu

FATBIN_MAGIC = 0x48495046


@api
def __hipRegisterFatBinary(hip: Runtime, handle: int, wrapper: int):
    hip.registered.binaries[handle] = FatBinary(wrapper)


@api
def __hipRegisterFunction(hip: Runtime, handle: int, host: int, name: int):
    hip.registered.functions[host] = handle, get_text(name)


@api
def __hipRegisterVar(hip: Runtime, handle: int, host: int, name: int, nbytes: int):
    hip.registered.variables[host] = handle, get_text(name), nbytes


@api
def __hipRegisterManagedVar(hip: Runtime, handle: int, pointer: int, name: int, nbytes: int):
    hip.registered.managed.append(get_text(name))


def _registered_module(hip: Runtime, handle: int) -> Module:
    known = hip.registered
    binary = known.binaries[handle]
    if binary.module is None:
        if known.managed:
            names = ", ".join(known.managed)
            raise HipFailure("NotSupported", f"__managed__ variables ({names})")
        magic, _, image, _ = struct.unpack("<IIQQ", peek(binary.wrapper, 24).ljust(24, b"\0"))
        if magic != FATBIN_MAGIC:
            raise HipFailure("InvalidImage", "the registered fat binary has no HIPF magic")
        binary.module = open_module(hip, image_at(image))
    return binary.module


def host_kernel(hip: Runtime, host: int) -> EmulatedKernel:
    """The kernel behind a host function's address, or behind a hipFunction_t."""
    if host in hip.functions:
        return hip.functions[host].kernel
    found = hip.registered.functions.get(host)
    if not found:
        raise HipFailure("InvalidDeviceFunction", f"0x{host:x} is no kernel of this program")
    return function_of(_registered_module(hip, found[0]), found[1]).kernel


@api
def hipLaunchKernel(hip: Runtime, host, gx, gy, gz, bx, by, bz, parameters, lds, stream):
    kernel = host_kernel(hip, host)
    raw = from_pointers(kernel, parameters)
    launch(hip, kernel, (gx, gy, gz), (bx, by, bz), lds, stream, raw)


@api
def hipExtLaunchKernel(
    hip: Runtime, host, gx, gy, gz, bx, by, bz, parameters, lds, stream, begin, end
):
    if begin:
        hipEventRecord(hip, begin, stream)
    hipLaunchKernel(hip, host, gx, gy, gz, bx, by, bz, parameters, lds, stream)
    if end:
        hipEventRecord(hip, end, stream)


def symbol(hip: Runtime, host: int) -> tuple[int, int]:
    """Device address and size of a registered variable."""
    found = hip.registered.variables.get(host)
    if not found:
        raise HipFailure("InvalidSymbol", f"0x{host:x} is no __device__ variable of this program")
    handle, name, _ = found
    variable = _registered_module(hip, handle).variables.get(name)
    if not variable:
        raise HipFailure("InvalidSymbol", f"the code object has no variable {name}")
    return variable.address, variable.nbytes


def _symbol_range(hip: Runtime, host: int, nbytes: int, offset: int) -> int:
    address, size = symbol(hip, host)
    if offset + nbytes > size:
        raise HipFailure(
            "InvalidValue", f"bytes {offset} to {offset + nbytes} of a symbol of {size}"
        )
    return address + offset


@api
def hipMemcpyToSymbol(hip: Runtime, host: int, source: int, nbytes: int, offset: int, kind: int):
    synchronous(hip)
    hipMemcpyToSymbolAsync(hip, host, source, nbytes, offset, kind, NULL_STREAM)


@api
def hipMemcpyToSymbolAsync(hip: Runtime, host: int, source: int, nbytes, offset, kind, stream: int):
    target = _symbol_range(hip, host, nbytes, offset)
    enqueue(hip, stream, lambda: copy(hip, target, source, nbytes, kind))


@api
def hipMemcpyFromSymbol(hip: Runtime, target: int, host: int, nbytes: int, offset: int, kind: int):
    synchronous(hip)
    hipMemcpyFromSymbolAsync(hip, target, host, nbytes, offset, kind, NULL_STREAM)


@api
def hipMemcpyFromSymbolAsync(
    hip: Runtime, target: int, host: int, nbytes: int, offset: int, kind: int, stream: int
):
    source = _symbol_range(hip, host, nbytes, offset)
    enqueue(hip, stream, lambda: copy(hip, target, source, nbytes, kind))


@api
def hipGetSymbolAddress(hip: Runtime, result: int, host: int):
    put_pointer(result, symbol(hip, host)[0])


@api
def hipGetSymbolSize(hip: Runtime, result: int, host: int):
    put_size(result, symbol(hip, host)[1])


# ---- What a kernel needs


@api
def hipFuncGetAttributes(hip: Runtime, result: int, host: int):
    """hipFuncAttributes: of its ten fields, those that mean something on this chip."""
    if not result:
        raise HipFailure("InvalidValue", "a null pointer for the attributes")
    d = host_kernel(hip, host).descriptor
    dynamic = MAX_LDS_BYTES - d.lds_bytes
    fields = (94, 0, 0, d.scratch_bytes, dynamic, d.max_workgroup_size, d.vgpr_count, 0, 94)
    raw = struct.pack("<iiQQiiiii4xQ", *fields, d.lds_bytes)
    ctypes.memmove(result, raw, len(raw))


@api
def hipFuncGetAttribute(hip: Runtime, value: int, attribute: int, function: int):
    d = host_kernel(hip, function).descriptor
    known = {0: d.max_workgroup_size, 1: d.lds_bytes, 3: d.scratch_bytes, 4: d.vgpr_count}
    known |= {2: 0, 5: 94, 6: 94, 7: 0, 8: MAX_LDS_BYTES - d.lds_bytes, 9: 0}
    if attribute not in known:
        raise HipFailure("InvalidValue", f"function attribute {attribute}")
    put_int(value, known[attribute])


@api
def hipFuncSetAttribute(hip: Runtime, host: int, attribute: int, value: int):
    host_kernel(hip, host)


@api
def hipFuncSetCacheConfig(hip: Runtime, host: int, config: int):
    """LDS and cache are apart on this chip: nothing to configure."""


@api
@alias(
    "hipModuleOccupancyMaxActiveBlocksPerMultiprocessor",
    "hipOccupancyMaxActiveBlocksPerMultiprocessorWithFlags",
)
def hipOccupancyMaxActiveBlocksPerMultiprocessor(
    hip: Runtime, blocks: int, host: int, block_size: int, lds: int
):
    if not 0 < block_size <= 1024:
        raise HipFailure("InvalidValue", f"a block of {block_size} work-items")
    put_int(blocks, workgroups_per_cu(host_kernel(hip, host).descriptor, block_size, lds))


@api
@alias("hipModuleOccupancyMaxPotentialBlockSize")
def hipOccupancyMaxPotentialBlockSize(
    hip: Runtime, grid: int, block: int, host: int, lds: int, limit: int
):
    """The largest block among those that keep most work-items on a compute unit."""
    d = host_kernel(hip, host).descriptor
    most = min(limit or 1024, d.max_workgroup_size, 1024)
    sizes = range(64, most + 1, 64) or (most,)
    best = max(sizes, key=lambda size: (size * workgroups_per_cu(d, size, lds), size))
    put_int(block, best)
    put_int(grid, COMPUTE_UNITS * workgroups_per_cu(d, best, lds))
