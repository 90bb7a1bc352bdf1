"""Calls that HipDevice does not make, as other programs make them: straight through the C ABI."""

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p

import numpy as np
import pytest

from hip_engine.gfx942.hip_runtime import device_calls
from hip_engine.hip import errors
from tests.hip_engine.gfx942 import objects

WORD = 4


@pytest.fixture
def hip(mi300x):
    """hip("hipName", arguments...) requires success; pointers and sizes are Python integers."""
    library = ctypes.CDLL(mi300x.hip.path)

    def call(name, *arguments, status=0):
        wide = [c_uint64(a) if isinstance(a, int) else a for a in arguments]
        assert getattr(library, name)(*wide) == status, mi300x.hip.text(status)

    return call


def pointer(hip, name, *arguments):
    made = c_void_p()
    hip(name, byref(made), *arguments)
    return made.value


def number(hip, name, *arguments, ctype=c_int):
    made = ctype()
    hip(name, byref(made), *arguments)
    return made.value


def host(array):
    return array.ctypes.data


ATTRIBUTES = {
    "warp_size": (87, 64),
    "multiprocessors": (63, 304),
    "threads_a_block": (56, 1024),
    "shared_memory": (74, 65536),
    "unknown": (9000, 0),
}


@pytest.mark.parametrize("case", ATTRIBUTES)
def test_attributes_describe_an_mi300x(case, hip):
    attribute, value = ATTRIBUTES[case]
    assert number(hip, "hipDeviceGetAttribute", attribute, 0) == value


@pytest.mark.parametrize("release", [0, 1])
def test_properties_of_both_layouts_do_not_overlap_and_fit(release):
    import struct

    spans = []
    for *offsets, code, _ in device_calls.PROPERTIES.values():
        if offsets[release] is not None:
            begin = offsets[release]
            spans.append((begin, begin + struct.calcsize("<" + code)))
            assert begin % {"Q": 8, "i": 4, "s": 1}[code[-1]] == 0
    spans.sort()
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
    assert spans[-1][1] <= len(device_calls.properties(release))


def test_versions_and_counts(hip):
    assert number(hip, "hipRuntimeGetVersion") // 10_000_000 == 6
    assert number(hip, "hipGetDeviceCount") == 1
    assert number(hip, "hipGetDevice") == 0


def test_texts_of_the_device_fit_where_they_go(hip):
    for name in ("hipDeviceGetName", "hipDeviceGetPCIBusId"):
        for length in (1, 5, 64):
            text = ctypes.create_string_buffer(b"#" * 64, 64)
            hip(name, text, length, 0)
            assert len(text.value) <= length - 1 and text.raw[length:] == b"#" * (64 - length)
    uuid = ctypes.create_string_buffer(b"#" * 17, 17)
    hip("hipDeviceGetUuid", uuid, 0)
    assert uuid.raw == device_calls.UUID + b"#"


def test_there_is_one_device_and_no_peer(hip):
    assert number(hip, "hipDeviceCanAccessPeer", 0, 1) == 0
    hip("hipDeviceEnablePeerAccess", 1, 0, status=errors.BY_NAME["PeerAccessUnsupported"])
    limit = errors.BY_NAME["UnsupportedLimit"]
    assert number(hip, "hipDeviceGetLimit", 1, ctype=c_size_t) == 1 << 20
    hip("hipDeviceSetLimit", 77, 1, status=limit)


def test_memory_says_what_it_is(hip, mi300x):
    kinds = {"hipMalloc": (64,), "hipHostMalloc": (64, 0), "hipMallocManaged": (64, 1)}
    for expected, (name, arguments) in zip((2, 1, 3), kinds.items(), strict=True):
        address = pointer(hip, name, *arguments)
        attributes = (ctypes.c_uint8 * 40)()
        hip("hipPointerGetAttributes", attributes, address)
        assert int.from_bytes(attributes[:4], "little") == expected
        hip("hipFree", address)
    local = np.zeros(4)
    hip("hipPointerGetAttributes", attributes, host(local))
    assert int.from_bytes(attributes[:4], "little") == 0


def test_managed_and_pinned_memory_are_seen_by_both_sides(hip, mi300x, kernels):
    kernel = mi300x.load(kernels)["add"]
    for name, flags in (("hipMallocManaged", 1), ("hipHostMalloc", 0)):
        address = pointer(hip, name, 256, flags)
        shared = np.ctypeslib.as_array((ctypes.c_int32 * 64).from_address(address))
        shared[:] = 5
        mi300x.launch(kernel, (1, 1, 1), (64, 1, 1), (address, 2))
        assert shared.tolist() == [7] * 64


def test_rows_are_copied_between_pitches(hip):
    pitch = c_size_t()
    image = c_void_p()
    hip("hipMallocPitch", byref(image), byref(pitch), 12, 5)
    assert pitch.value == 256
    rows, back = np.arange(15, dtype=np.int32).reshape(5, 3), np.zeros((5, 3), np.int32)
    hip("hipMemcpy2D", image.value, 256, host(rows), 12, 12, 5, 1)
    hip("hipMemcpy2D", host(back), 12, image.value, 256, 12, 5, 2)
    np.testing.assert_array_equal(rows, back)
    narrow = errors.BY_NAME["InvalidPitchValue"]
    hip("hipMemcpy2D", image.value, 8, host(rows), 12, 12, 5, 1, status=narrow)


FILLS = {
    "hipMemsetD8": (0x1AB, 8, np.uint8, 0xAB),
    "hipMemsetD16": (0x1ABCD, 4, np.uint16, 0xABCD),
    "hipMemsetD32": (0xDEADBEEF, 2, np.uint32, 0xDEADBEEF),
}


@pytest.mark.parametrize("name", FILLS)
def test_fills_of_every_width(name, hip):
    value, count, dtype, expected = FILLS[name]
    address = pointer(hip, "hipMalloc", 16)
    hip(name, address, value, count)
    got = np.zeros(16, np.uint8)
    hip("hipMemcpy", host(got), address, 16, 4)
    assert set(got[:8].view(dtype)) == {expected} and not got[8:].any()


def test_copies_know_their_direction_from_the_addresses(hip):
    a, b = pointer(hip, "hipMalloc", 16), pointer(hip, "hipMalloc", 16)
    source, target = np.arange(4, dtype=np.int32), np.zeros(4, np.int32)
    for destination, origin in ((a, host(source)), (b, a), (host(target), b)):
        hip("hipMemcpy", destination, origin, 16, 4)
    np.testing.assert_array_equal(source, target)


def test_a_module_finds_its_variables(hip, mi300x, kernels):
    module = mi300x.hip.make("hipModuleLoadData", kernels)
    address, nbytes = c_void_p(), c_size_t()
    hip("hipModuleGetGlobal", byref(address), byref(nbytes), module, c_char_p(b"table"))
    assert nbytes.value == 16
    values = np.zeros(4, np.int32)
    hip("hipMemcpy", host(values), address.value, 16, 2)
    assert values.tolist() == [1, 2, 3, 4]
    absent = errors.BY_NAME["NotFound"]
    hip("hipModuleGetGlobal", None, None, module, c_char_p(b"absent"), status=absent)


def test_a_kernel_takes_an_array_of_pointers_to_its_arguments(hip, mi300x, kernels):
    function = mi300x.load(kernels)["add"].function
    address, amount = c_void_p(pointer(hip, "hipMalloc", 512)), c_int(9)
    parameters = (c_void_p * 2)(ctypes.addressof(address), ctypes.addressof(amount))
    geometry = (2, 1, 1, 64, 1, 1, 0)
    hip("hipModuleLaunchKernel", function, *geometry, None, parameters, None)
    hip("hipExtModuleLaunchKernel", function, 128, *geometry[1:], *(None, parameters), *[None] * 4)
    got = np.zeros(128, np.int32)
    hip("hipMemcpy", host(got), address.value, 512, 2)
    assert got.tolist() == [18] * 128
    both = errors.BY_NAME["InvalidValue"]
    hip("hipModuleLaunchKernel", function, *geometry, None, parameters, parameters, status=both)


def test_occupancy_is_that_of_the_registers(hip, mi300x):
    text = objects.kernel_text("k", "", vgprs=256, accum=256)
    function = mi300x.load(objects.kernels(text))["k"].function
    blocks = c_int()
    hip("hipModuleOccupancyMaxActiveBlocksPerMultiprocessor", byref(blocks), function, 256, 0)
    assert blocks.value == 2
    hip("hipModuleOccupancyMaxActiveBlocksPerMultiprocessor", byref(blocks), function, 64, 60000)
    assert blocks.value == 1
    grid, block = c_int(), c_int()
    name = "hipModuleOccupancyMaxPotentialBlockSize"
    hip(name, byref(grid), byref(block), function, 0, 0)
    assert block.value * grid.value == 2 * 4 * 64 * 304


def test_host_functions_run_in_order_and_in_graphs(hip, mi300x):
    seen = []
    kind = ctypes.CFUNCTYPE(None, c_void_p)
    note = kind(lambda data: seen.append(data))
    with mi300x.stream() as stream:
        hip("hipLaunchHostFunc", stream.handle, note, 1)
        with stream.capture() as capture:
            hip("hipLaunchHostFunc", stream.handle, note, 2)
        assert seen == [1]
        with capture.graph as graph:
            graph.launch(stream)
    assert seen == [1, 2]


def test_null_results_are_invalid_values(hip):
    for name in ("hipGetDeviceCount", "hipStreamCreate", "hipEventCreate"):
        hip(name, None, status=errors.BY_NAME["InvalidValue"])


def test_what_is_not_there_says_so(hip):
    memory = np.zeros(4)
    hip("hipHostRegister", host(memory), 32, 0, status=errors.BY_NAME["NotSupported"])
