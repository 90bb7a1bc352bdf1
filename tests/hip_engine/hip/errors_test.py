"""Every code of the runtime is a typed error that names the call; those that can be provoked."""

import ctypes
import random
import re

import numpy as np
import pytest

from hip_engine.device import open_device
from hip_engine.errors import (
    CodeObjectError,
    DeviceFault,
    DeviceUnavailable,
    EngineError,
    LaunchError,
    OutOfDeviceMemory,
)
from hip_engine.hip import errors, library
from tests.hip_engine.gfx942 import objects

LDS_TOO_LARGE = 1 << 17


@pytest.mark.parametrize("code", errors.CODES)
def test_every_code_has_a_type_that_names_itself_and_the_call(code):
    raised = errors.error("hipSomething", code, "the text", "for what")
    assert type(raised) is errors.type_of(code) and isinstance(raised, errors.HipError)
    assert type(raised).__name__ == f"HipError{errors.CODES[code].name}"
    assert (raised.call, raised.code) == ("hipSomething", code)
    assert str(raised) == f"for what: hipSomething: {raised.name} ({code}): the text"


def test_no_two_codes_share_a_type():
    assert len({errors.type_of(code) for code in errors.CODES}) == len(errors.CODES)


def test_a_code_that_no_release_had_is_an_error_with_its_number():
    assert "hipError_t 12345" in str(errors.error("hipInit", 12345, "?"))


def test_a_machine_without_hip_is_told_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("ROCM_PATH", str(tmp_path))
    monkeypatch.setattr(library, "NAME", "libabsent.so")
    with pytest.raises(DeviceUnavailable, match="no HIP runtime.*--device=emulated"):
        open_device("mi300x")


def test_an_unknown_device_is_refused():
    with pytest.raises(DeviceUnavailable, match="use emulated or mi300x"):
        open_device("banana")


def buffer_of(device, count=64):
    return device.allocate(4 * count, "numbers")


def launch(device, kernels, name, args, grid=(1, 1, 1), block=(64, 1, 1), lds=0):
    device.launch(device.load(kernels)[name], grid, block, args, lds)


def foreign_object(architecture):
    flags = [f.replace("gfx942", architecture) for f in objects.HIP_FLAGS]
    return objects.build(objects.PRELUDE + "KERNEL k() {}", (*flags, "-O3"))


def load_raw(device, image):
    """hipModuleLoadData without the parsing that HipDevice.load does before it."""
    return device.hip.make("hipModuleLoadData", image)


PROVOKED = {
    "out_of_memory": ("OutOfMemory", OutOfDeviceMemory, lambda d, k: d.allocate(1 << 50, "huge")),
    "free_of_a_pointer_inside": (
        "InvalidValue",
        LaunchError,
        lambda d, k: d.hip.call("hipFree", buffer_of(d).address + 4),
    ),
    "copy_past_the_end": (
        "InvalidValue",
        LaunchError,
        lambda d, k: d.hip.call("hipMemsetAsync", buffer_of(d).address, 0, 257, None),
    ),
    "copy_direction": (
        "InvalidMemcpyDirection",
        LaunchError,
        lambda d, k: d.hip.call("hipMemcpy", 1, 2, 3, 77),
    ),
    "module_for_another_chip": (
        "NoBinaryForGpu",
        CodeObjectError,
        lambda d, k: load_raw(d, foreign_object("gfx90a")),
    ),
    "module_that_is_none": ("InvalidImage", CodeObjectError, lambda d, k: load_raw(d, b"x" * 99)),
    "kernel_that_is_not_there": (
        "NotFound",
        CodeObjectError,
        lambda d, k: d.hip.make("hipModuleGetFunction", load_raw(d, k), b"absent"),
    ),
    "block_too_large": (
        "InvalidConfiguration",
        LaunchError,
        lambda d, k: launch(d, k, "nothing", (), block=(2048, 1, 1)),
    ),
    "too_much_lds": (
        "InvalidValue",
        LaunchError,
        lambda d, k: launch(d, k, "nothing", (), lds=LDS_TOO_LARGE),
    ),
    "stream_that_is_none": (
        "InvalidHandle",
        EngineError,
        lambda d, k: d.hip.call("hipStreamSynchronize", 0x1234),
    ),
    "device_that_is_not_there": (
        "InvalidDevice",
        DeviceUnavailable,
        lambda d, k: d.hip.call("hipSetDevice", 1),
    ),
}


@pytest.mark.parametrize("case", PROVOKED)
def test_what_goes_wrong_in_the_runtime_arrives_as_its_type(case, mi300x, kernels):
    name, family, provoke = PROVOKED[case]
    with pytest.raises(family, match=f"hipError{name} ") as raised:
        provoke(mi300x, kernels)
    assert type(raised.value) is errors.type_of(errors.BY_NAME[name])


def test_mutated_images_are_loaded_or_refused_with_a_code(mi300x, kernels):
    seen = set()
    for seed in range(120):
        rng = random.Random(seed)
        image = bytearray(kernels)
        for _ in range(rng.randint(1, 6)):
            image[rng.randrange(rng.choice((64, 600, len(image))))] = rng.randrange(256)
        module = ctypes.c_void_p()
        given = bytes(image[: rng.randrange(len(image)) if seed % 5 == 0 else None])
        status = mi300x.hip.status("hipModuleLoadData", ctypes.byref(module), given)
        seen.add(errors.name_of(status))
        if status == errors.SUCCESS:
            mi300x.hip.call("hipModuleUnload", module)
    assert {"hipSuccess", "hipErrorInvalidImage"} <= seen
    assert seen <= {"hipSuccess", "hipErrorInvalidImage", "hipErrorNoBinaryForGpu"}


def test_a_grid_of_zero_is_refused_before_the_runtime_sees_it(mi300x, kernels):
    with pytest.raises(LaunchError, match="3 positive sizes"):
        launch(mi300x, kernels, "nothing", (), grid=(0, 1, 1))


def test_a_fault_shows_at_the_next_wait_says_where_and_stays_until_reset(mi300x, kernels, capfd):
    launch(mi300x, kernels, "store_at", (np.uint64(64),))
    with pytest.raises(DeviceFault, match=r"IllegalAddress.*store_at\+0x.*at 0x40") as raised:
        mi300x.synchronize()
    assert raised.value.call == "hipDeviceSynchronize"
    printed = capfd.readouterr().err
    assert len(re.findall("store_at", printed)) == 1
    with pytest.raises(DeviceFault):
        launch(mi300x, kernels, "nothing", ())
    mi300x.hip.call("hipDeviceReset")
    launch(mi300x, kernels, "nothing", ())
    mi300x.synchronize()


def test_the_last_error_is_kept_until_it_is_read(mi300x):
    mi300x.hip.status("hipFree", 3)
    assert mi300x.hip.status("hipGetLastError") == errors.BY_NAME["InvalidValue"]
    assert mi300x.hip.status("hipGetLastError") == errors.SUCCESS
