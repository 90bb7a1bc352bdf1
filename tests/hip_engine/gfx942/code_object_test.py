"""Code objects that must be refused, kernels that cannot run yet, and the cache of translations."""

import random
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hip_engine.errors import CodeObjectError, UnsupportedInstruction
from hip_engine.gfx942 import jit
from hip_engine.gfx942.code_object import CodeObject
from hip_engine.gfx942.device import EmulatedDevice
from tests.hip_engine.gfx942 import objects

SOURCE = """
DEVICE int table[4] = {1, 2, 3, 4};
DEVICE int* end = &table[3];
NOINLINE int twice(int x) { return 2 * x; }
KERNEL first(int* out) { out[tid()] = twice(tid()) + *end; }
KERNEL second(float* out, float x, short n) { out[tid()] = x * n; }
"""


@pytest.fixture(scope="module")
def good():
    return objects.hip(SOURCE)


def test_kernels_arguments_and_sizes_come_from_the_object(good):
    code = CodeObject.parse(good)
    assert sorted(code.kernels) == ["first", "second"]
    explicit = [a for a in code.kernels["second"].arguments if not a.hidden]
    assert [(a.offset, a.size, a.kind) for a in explicit] == [
        (0, 8, "global_buffer"),
        (8, 4, "by_value"),
        (12, 2, "by_value"),
    ]
    assert code.kernels["second"].max_workgroup_size == 1024


@pytest.mark.parametrize("size", [0, 1, 4, 16, 63, 64, 500, 1000, 3000])
def test_a_truncated_object_is_refused(device, good, size):
    with pytest.raises(CodeObjectError):
        device.load(good[:size])


def test_what_is_not_an_elf_is_refused(device):
    for data in (b"", b"text", b"MZ" + bytes(100), b"__CLANG_OFFLOAD_BUNDLE__"):
        with pytest.raises(CodeObjectError, match="not a code object"):
            device.load(data)


def test_an_object_for_this_host_is_refused(device):
    host = objects.build("int f(void) { return 1; }", ("-x", "c", "-c"))
    with pytest.raises(CodeObjectError, match="not an AMD GPU code object.*X86_64"):
        device.load(host)


@pytest.mark.parametrize("target", ["gfx90a", "gfx908", "gfx1100"])
def test_an_object_for_another_chip_is_refused_by_name(device, target):
    flags = [f.replace("gfx942", target) for f in objects.HIP_FLAGS]
    other = objects.build(objects.PRELUDE + SOURCE, (*flags, "-O3"))
    with pytest.raises(CodeObjectError, match=f"for {target}, not gfx942"):
        device.load(other)


def test_an_object_without_kernels_is_refused(device):
    flags = ("--target=amdgcn-amd-amdhsa", "-mcpu=gfx942", "-nogpulib", "-x", "c")
    empty = objects.build("int f(int x) { return x; }", flags)
    with pytest.raises(CodeObjectError, match="holds no kernel"):
        device.load(empty)


def test_an_unsupported_relocation_is_refused(device, good):
    """The type of the only dynamic relocation becomes one that has no meaning here."""
    code = CodeObject.parse(good)
    address, kind, value = code.relocations[0]
    entry = struct.pack("<QQq", address, kind, value)
    at = good.index(entry)
    patched = good[: at + 8] + struct.pack("<Q", 99) + good[at + 16 :]
    with pytest.raises(CodeObjectError, match="relocation type 99"):
        device.load(patched)


UNKNOWN = "  v_mov_b32 v1, 0\n  s_nop 0\n  v_smfmac_f32_16x16x32_f16 v[0:3], v[4:5], v[6:9], v10\n"


def test_an_unknown_opcode_names_itself_the_kernel_and_the_offset_at_load(device):
    from hip_engine.gfx942.isa import OPCODES

    assert "v_smfmac_f32_16x16x32_f16" not in OPCODES
    code = objects.kernels(objects.kernel_text("strange", UNKNOWN))
    with pytest.raises(UnsupportedInstruction, match="v_smfmac_f32_16x16x32_f16") as caught:
        device.load(code)
    assert "kernel strange at offset 0x8" in str(caught.value)


def test_an_unreachable_unknown_opcode_does_no_harm(device):
    body = "  s_branch end\n" + UNKNOWN + "end:\n"
    text = objects.kernel_text("skips", body, pointers=0)
    kernel = device.load(objects.kernels(text))["skips"]
    device.launch(kernel, (1, 1, 1), (64, 1, 1), [])


def test_a_kernel_that_runs_into_data_is_refused(device):
    body = "  s_nop 0\n  .long 0xffffffff\n"
    with pytest.raises(UnsupportedInstruction, match="kernel data at offset 0x4"):
        device.load(objects.kernels(objects.kernel_text("data", body)))


def test_a_branch_out_of_the_code_is_refused(device):
    body = "  s_branch 0x7000\n"
    with pytest.raises(UnsupportedInstruction, match="leaves the code section"):
        device.load(objects.kernels(objects.kernel_text("astray", body)))


def test_a_second_load_takes_the_translation_from_the_disk(tmp_path, monkeypatch, good):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    device = EmulatedDevice(threads=1)
    code = CodeObject.parse(good)
    assert not any(jit.is_cached(code, kernel) for kernel in code.kernels.values())
    first = device.load(good)
    assert all(jit.is_cached(code, kernel) for kernel in code.kernels.values())

    def refuse(*_):
        raise AssertionError("translated although cached")

    monkeypatch.setattr(jit, "translate", refuse)
    second = device.load(good)
    outputs = []
    for loaded in (first, second):
        buffer = device.allocate(256, "out")
        device.launch(loaded["first"], (1, 1, 1), (64, 1, 1), [buffer])
        outputs.append(device.read(buffer, np.int32, 64))
    np.testing.assert_array_equal(2 * np.arange(64) + 4, outputs[0])
    np.testing.assert_array_equal(*outputs)


FUZZ = """
import pathlib, sys
from hip_engine.errors import EngineError
from hip_engine.gfx942.device import EmulatedDevice

device = EmulatedDevice(threads=1, budget=100_000)
refused = ran = 0
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.co")):
    try:
        loaded = device.load(path.read_bytes())
        out = device.allocate(4096, "out")
        for kernel in loaded.values():
            explicit = [a for a in kernel.arguments if not a[3].startswith("hidden")]
            args = [out if a[2] == 8 else bytes(a[2]) for a in explicit]
            device.launch(kernel, (2, 1, 1), (64, 1, 1), args)
        ran += 1
    except EngineError:
        refused += 1
print(refused, ran)
"""


def mutations(data: bytes, count: int, seed: int):
    """Copies of `data` with a few bytes, words or stretches changed, or cut off."""
    rng = random.Random(seed)
    for _ in range(count):
        copy = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(copy))
            kind = rng.randrange(5)
            if kind == 0:
                copy[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                copy[at] = rng.randrange(256)
            elif kind == 2:
                copy[at : at + 4] = rng.randbytes(4)
            elif kind == 3:
                copy[at : at + 8] = rng.choice((b"\\0", b"\\xff", b"\\x7f")) * 8
            else:
                word = 4 * rng.randrange(16)
                copy[word : word + 4] = rng.randbytes(4)
        if rng.random() < 0.1:
            copy = copy[: rng.randrange(len(copy))]
        yield bytes(copy)


@pytest.mark.parametrize(
    "count", [40, pytest.param(1500, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_mutated_objects_never_crash_the_interpreter(tmp_path, good, count):
    code = CodeObject.parse(good)
    text = good.index(code.image[code.text[0] : code.text[0] + code.text[1]])
    for i, mutated in enumerate(mutations(good, count // 2, seed=1)):
        (tmp_path / f"any{i:04}.co").write_bytes(mutated)
    instructions = good[text : text + code.text[1]]
    for i, mutated in enumerate(mutations(instructions, count // 2, seed=2)):
        whole = good[:text] + mutated + good[text + len(mutated) :]
        (tmp_path / f"text{i:04}.co").write_bytes(whole)
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(tmp_path)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    refused, ran = map(int, done.stdout.split())
    assert refused + ran == len(list(tmp_path.glob("*.co"))) and refused and ran
