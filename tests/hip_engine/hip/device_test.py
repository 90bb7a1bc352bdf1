"""HipDevice over the C ABI of the runtime, against the emulated device without it."""

from pathlib import Path

import numpy as np
import pytest

from hip_engine.engine import Engine
from hip_engine.errors import DeviceUnavailable, LaunchError
from hip_engine.gfx942.hip_runtime import build, memory_calls, server  # noqa: F401  (handlers)
from hip_engine.gfx942.hip_runtime.runtime import HANDLERS
from hip_engine.taps import SITES, Taps

MODEL = Path(__file__).parents[3] / "models" / "greta-tiny-32l" / "greta-tiny-32l-Q4_K_M.gguf"
# Served by the library itself, without Python.
IN_C = {
    "hipGetLastError",
    "hipExtGetLastError",
    "hipPeekAtLastError",
    "__hipPushCallConfiguration",
    "__hipPopCallConfiguration",
    "__hipRegisterTexture",
    "__hipRegisterSurface",
    "__hipUnregisterFatBinary",
}


def test_every_exported_call_has_a_handler_and_every_handler_is_exported():
    assert build.exported() == IN_C | set(HANDLERS)


def test_every_call_younger_than_the_first_release_has_its_version():
    assert set(build.YOUNGER) <= build.exported()
    assert set(build.YOUNGER.values()) <= set(build.NODES)


def test_the_device_is_found_by_its_architecture(mi300x):
    assert mi300x.name == "mi300x 0 (gfx942:sramecc+:xnack-)"
    free, total = mi300x.memory_bytes
    assert 0 < free <= total == 192 << 30


def test_bytes_come_back_and_neighbours_stay(mi300x):
    buffer = mi300x.allocate(16, "numbers")
    mi300x.fill(buffer, 0xAB)
    mi300x.write(buffer, np.arange(2, dtype=np.int32), offset_bytes=4)
    assert mi300x.read(buffer, np.uint32, 4).tolist() == [0xABABABAB, 0, 1, 0xABABABAB]
    mi300x.free(buffer)
    with pytest.raises(LaunchError, match="not an allocation"):
        mi300x.free(buffer)


def test_large_copies_and_fills_go_in_pieces(mi300x, monkeypatch):
    monkeypatch.setattr(memory_calls, "CHUNK_BYTES", 64)
    numbers = np.arange(1000, dtype=np.int32)
    buffer = mi300x.allocate(4000, "numbers")
    mi300x.write(buffer, numbers)
    for target, source in ((4, 0), (0, 400)):
        copy = (buffer.address + target, buffer.address + source, 3600, 3)
        mi300x.hip.call("hipMemcpy", *copy)
        moved = numbers.copy()
        moved[target // 4 :][:900] = numbers[source // 4 :][:900]
        numbers = moved
        np.testing.assert_array_equal(mi300x.read(buffer, np.int32, 1000), numbers)
    mi300x.fill(buffer, 0x11)
    assert set(mi300x.read(buffer, np.uint8, 4000)) == {0x11}


def test_a_kernel_gives_the_bits_of_the_emulated_device(mi300x, device, kernels):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 1000)).astype(np.float32)
    results = []
    for d in (mi300x, device):
        buffers = [d.allocate(x.nbytes, name) for name in "xy"]
        for buffer, array in zip(buffers, (x, y), strict=True):
            d.write(buffer, array)
        args = (np.float32(1.7), *buffers, 1000)
        d.launch(d.load(kernels)["saxpy"], (4, 1, 1), (256, 1, 1), args)
        d.synchronize()
        results.append(d.read(buffers[1], np.float32, 1000))
        for buffer in buffers:
            d.free(buffer)
    np.testing.assert_array_equal(*results)
    assert not np.array_equal(results[0], y)


def test_dynamic_lds_reaches_the_kernel(mi300x, kernels):
    buffer = mi300x.allocate(256, "numbers")
    mi300x.write(buffer, np.arange(64, dtype=np.int32))
    mi300x.launch(mi300x.load(kernels)["reverse"], (1, 1, 1), (64, 1, 1), (buffer,), 256)
    np.testing.assert_array_equal(mi300x.read(buffer, np.int32, 64), np.arange(64)[::-1])


def test_a_copy_to_pinned_memory_follows_the_work_it_waits_for(mi300x, kernels):
    kernel, numbers = mi300x.load(kernels)["add"], mi300x.allocate(256, "numbers")
    pinned = mi300x.pinned(8, np.int32)
    host = pinned.array
    assert host.tolist() == [0] * 8
    with pinned, mi300x.stream() as work, mi300x.stream() as copies, mi300x.event() as done:
        mi300x.launch(kernel, (1, 1, 1), (64, 1, 1), (numbers, 5), stream=work)
        done.record(work)
        copies.wait(done)
        copies.read_later(numbers, host[2:6], offset_bytes=16)
        copies.synchronize()
        with pytest.raises(LaunchError, match="bytes 252..260 of numbers"):
            copies.read_later(numbers, host[:2], offset_bytes=252)
        assert host.tolist() == [0, 0, 5, 5, 5, 5, 0, 0]


def test_what_kernels_touch_is_not_reported_and_says_so(mi300x):
    with pytest.raises(DeviceUnavailable, match="does not report"):
        mi300x.watch()


def test_the_engine_gives_the_bits_of_the_emulated_device_at_every_site(mi300x, device):
    """A few tokens through 32 layers; b3_20 through both devices is the slow test."""
    steps, replayed, generated = [], [], []
    for d in (device, mi300x):
        engine = Engine.open(MODEL, d, max_context=64)
        engine.prefill((1, 700))
        steps.append(engine.step(42, Taps.of(SITES, (0, 1, 31))))
        replayed.append(engine.step(9))
        generated.append(engine.generate(replayed[-1].top1, 5))
        engine.close()
    np.testing.assert_array_equal(replayed[0].logits_V, replayed[1].logits_V)
    assert generated[0].tokens == generated[1].tokens
    assert generated[0].launches_per_token == generated[1].launches_per_token
    ref, got = steps
    assert ref.top1 == got.top1 and ref.taps.keys() == got.taps.keys() and len(ref.taps) > 40
    for place, tensor in ref.taps.items():
        np.testing.assert_array_equal(tensor, got.taps[place], err_msg=str(place))
