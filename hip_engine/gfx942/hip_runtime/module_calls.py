"""Modules and their functions, and their launches."""

from pathlib import Path
from typing import NamedTuple

from hip_engine.gfx942 import bundle
from hip_engine.gfx942.dispatch import EmulatedKernel
from hip_engine.gfx942.hip_runtime.images import image_at
from hip_engine.gfx942.hip_runtime.launches import arguments_of, launch
from hip_engine.gfx942.hip_runtime.runtime import (
    DEVICE,
    HipFailure,
    Runtime,
    api,
    get_text,
    put_pointer,
    put_size,
)
from hip_engine.gfx942.hip_runtime.stream_calls import hipEventRecord, synchronous
from hip_engine.gfx942.module import Module


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


def function_of(module: Module, name: str) -> Function:
    if name not in module:
        known = ", ".join(module) or "none"
        raise HipFailure("NotFound", f"no kernel {name!r}; the module has {known}")
    return Function(module, name)


@api
def hipModuleGetFunction(hip: Runtime, result: int, module: int, name: int):
    function = function_of(hip.modules[module], get_text(name))
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


@api
def hipModuleLaunchKernel(
    hip: Runtime, function, gx, gy, gz, bx, by, bz, lds, stream, parameters, extra
):
    kernel = hip.functions[function].kernel
    raw = arguments_of(kernel, parameters, extra)
    launch(hip, kernel, (gx, gy, gz), (bx, by, bz), lds, stream, raw)


@api
def hipExtModuleLaunchKernel(
    hip: Runtime, function, nx, ny, nz, bx, by, bz, lds, stream, parameters, extra, begin, end
):
    """The grid is in work-items; partial workgroups are not implemented."""
    if not (bx and by and bz) or nx % bx or ny % by or nz % bz:
        raise HipFailure("InvalidConfiguration", f"{(nx, ny, nz)} items in blocks {(bx, by, bz)}")
    kernel = hip.functions[function].kernel
    raw = arguments_of(kernel, parameters, extra)
    if begin:
        hipEventRecord(hip, begin, stream)
    launch(hip, kernel, (nx // bx, ny // by, nz // bz), (bx, by, bz), lds, stream, raw)
    if end:
        hipEventRecord(hip, end, stream)
