"""Modules, functions and launches, and the registration calls of compiled HIP programs."""

import ctypes
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hip_engine.errors import CodeObjectError, DeviceFault, LaunchError
from hip_engine.gfx942 import bundle
from hip_engine.gfx942.dispatch import MAX_LDS_BYTES, EmulatedKernel, check_geometry
from hip_engine.gfx942.hip_runtime.memory_calls import copy
from hip_engine.gfx942.hip_runtime.runtime import (
    DEVICE,
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
BUFFER_POINTER, BUFFER_SIZE, END = 1, 2, 3
HEADER_BYTES = 1 << 16
MAX_KERNARG_BYTES = 1 << 16


# ---- Images in the caller's memory, whose size nobody tells


def peek(address: int, nbytes: int) -> bytes:
    """Up to `nbytes` of this process's memory; what is not mapped is cut off, not a crash."""
    file = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        return os.pread(file, nbytes, address)
    except OSError:
        return b""
    finally:
        os.close(file)


def image_at(address: int) -> bytes:
    """A code object or bundle that begins at `address`, as long as its headers say.

    Raises:
      CodeObjectError: neither, or it reaches into memory that is not mapped.
    """
    head = peek(address, HEADER_BYTES)
    if head[:4] == bundle.ELF and len(head) >= 64:
        nbytes = _elf_bytes(head, address)
    elif head[:4] == bundle.COMPRESSED and head[4:6] == b"\x01\0":
        raise CodeObjectError("a compressed bundle of version 1 does not say how long it is")
    else:
        nbytes = bundle.bundle_bytes(head)
    data = peek(address, nbytes) if nbytes <= bundle.MAX_UNCOMPRESSED_BYTES else b""
    if len(data) < nbytes:
        raise CodeObjectError(f"an image of {nbytes} bytes is not all in memory")
    return data


def _elf_bytes(head: bytes, address: int) -> int:
    program, section = struct.unpack_from("<QQ", head, 32)
    program_size, programs, section_size, sections = struct.unpack_from("<4H", head, 54)
    ends = [64, program + programs * program_size, section + sections * section_size]
    table = peek(address + program, programs * program_size)
    for position in range(0, len(table) - 55, max(program_size, 56)):
        offset, _, _, nbytes = struct.unpack_from("<QQQQ", table, position + 8)
        ends.append(offset + nbytes)
    return max(ends)


# ---- Modules


def open_module(hip: Runtime, data: bytes) -> Module:
    module = hip.device.open(bundle.select(data)[0])
    hip.adopt(module.image, DEVICE)
    return module


@api
def hipModuleLoadData(hip: Runtime, result: int, image: int):
    synchronous(hip)
    if not image:
        raise HipFailure("InvalidValue", "a null image")
    put_pointer(result, 0)
    put_pointer(result, hip.modules.add(open_module(hip, image_at(image))))


@api
def hipModuleLoadDataEx(hip: Runtime, result: int, image: int, count: int, keys: int, values: int):
    hipModuleLoadData(hip, result, image)


@api
def hipModuleLoad(hip: Runtime, result: int, path: int):
    synchronous(hip)
    file = Path(get_text(path))
    if not file.is_file():
        raise HipFailure("FileNotFound", str(file))
    put_pointer(result, hip.modules.add(open_module(hip, file.read_bytes())))


@api
def hipModuleUnload(hip: Runtime, module: int):
    synchronous(hip)
    hip.free(hip.modules.remove(module).image.address)


class Function(NamedTuple):
    """A kernel that is translated when it is first needed."""

    module: Module
    name: str

    @property
    def kernel(self) -> EmulatedKernel:
        return self.module[self.name]


def _function(module: Module, name: str) -> Function:
    if name not in module:
        known = ", ".join(module) or "none"
        raise HipFailure("NotFound", f"no kernel {name!r}; the module has {known}")
    return Function(module, name)


@api
def hipModuleGetFunction(hip: Runtime, result: int, module: int, name: int):
    function = _function(hip.modules[module], get_text(name))
    put_pointer(result, hip.functions.add(function))


@api
def hipModuleGetGlobal(hip: Runtime, address: int, nbytes: int, module: int, name: int):
    variable = hip.modules[module].variables.get(get_text(name))
    if not variable:
        raise HipFailure("NotFound", f"no variable {get_text(name)!r} in the module")
    for pointer, value in ((address, variable.address), (nbytes, variable.nbytes)):
        if pointer:
            put_size(pointer, value)


# ---- Launches


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


def _arguments(kernel: EmulatedKernel, parameters: int, extra: int) -> bytes:
    if parameters and extra:
        raise HipFailure("InvalidValue", "both kernelParams and extra")
    return from_extra(extra) if extra else from_pointers(kernel, parameters)


@api
def hipModuleLaunchKernel(
    hip: Runtime, function, gx, gy, gz, bx, by, bz, lds, stream, parameters, extra
):
    kernel = hip.functions[function].kernel
    raw = _arguments(kernel, parameters, extra)
    launch(hip, kernel, (gx, gy, gz), (bx, by, bz), lds, stream, raw)


@api
def hipExtModuleLaunchKernel(
    hip: Runtime, function, nx, ny, nz, bx, by, bz, lds, stream, parameters, extra, begin, end
):
    """The grid is in work-items; partial workgroups are not implemented."""
    if not (bx and by and bz) or nx % bx or ny % by or nz % bz:
        raise HipFailure("InvalidConfiguration", f"{(nx, ny, nz)} items in blocks {(bx, by, bz)}")
    for event, moment in ((begin, "before"), (end, "after")):
        if moment == "after":
            grid = (nx // bx, ny // by, nz // bz)
            kernel = hip.functions[function].kernel
            raw = _arguments(kernel, parameters, extra)
            launch(hip, kernel, grid, (bx, by, bz), lds, stream, raw)
        if event:
            hipEventRecord(hip, event, stream)


# ---- Compiled programs: <<<>>> launches and device symbols


@dataclass
class FatBinary:
    wrapper: int
    module: Module | None = None


@dataclass
class Registered:
    """What the constructors of compiled programs registered, by host address."""

    binaries: dict[int, FatBinary] = field(default_factory=dict)
    functions: dict[int, tuple[int, str]] = field(default_factory=dict)
    variables: dict[int, tuple[int, str, int]] = field(default_factory=dict)
    managed: list[str] = field(default_factory=list)

    def afresh(self) -> "Registered":
        """The same registrations, nothing loaded."""
        binaries = {h: FatBinary(b.wrapper) for h, b in self.binaries.items()}
        return Registered(binaries, self.functions, self.variables, self.managed)


def registered(hip: Runtime) -> Registered:
    if not hasattr(hip, "registered"):
        hip.registered = Registered()
    return hip.registered


@api
def __hipRegisterFatBinary(hip: Runtime, handle: int, wrapper: int):
    registered(hip).binaries[handle] = FatBinary(wrapper)


@api
def __hipRegisterFunction(hip: Runtime, handle: int, host: int, name: int):
    registered(hip).functions[host] = handle, get_text(name)


@api
def __hipRegisterVar(hip: Runtime, handle: int, host: int, name: int, nbytes: int):
    registered(hip).variables[host] = handle, get_text(name), nbytes


@api
def __hipRegisterManagedVar(hip: Runtime, handle: int, pointer: int, name: int, nbytes: int):
    registered(hip).managed.append(get_text(name))


def _registered_module(hip: Runtime, handle: int) -> Module:
    known = registered(hip)
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
    found = registered(hip).functions.get(host)
    if not found:
        raise HipFailure("InvalidDeviceFunction", f"0x{host:x} is no kernel of this program")
    return _function(_registered_module(hip, found[0]), found[1]).kernel


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
    found = registered(hip).variables.get(host)
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
