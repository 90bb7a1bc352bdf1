"""Code objects inside bundles, compressed bundles, archives of them and host programs."""

import struct
import subprocess
import zlib

import pytest

from hip_engine.errors import CodeObjectError
from hip_engine.gfx942 import bundle, load
from hip_engine.gfx942.code_object import CodeObject, WrongProcessor
from hip_engine.toolchain import find_compiler
from tests.hip_engine.gfx942 import objects

# What clang wants to see before it emits launches on the host side.
LAUNCH = """
struct dim3 { unsigned x, y, z; };
extern "C" int hipLaunchKernel(const void*, dim3, dim3, void**, unsigned long, struct Stream*);
"""
SOURCE = "KERNEL add(int* x, int n) { x[tid()] += n; }"
BOTH = ("--offload-arch=gfx90a", "--offload-arch=gfx942")
FLAGS = ("-x", "hip", "-nogpulib", "-nogpuinc", "-std=c++17", "-O1", "-fuse-cuid=none")
DEVICE_ONLY = ("--offload-device-only", "--gpu-bundle-output")


def compiled(*flags, source=SOURCE):
    return objects.build(LAUNCH + objects.PRELUDE + source, (*FLAGS, *flags))


MADE = {
    "bundle": (*BOTH, *DEVICE_ONLY),
    "compressed": (*BOTH, *DEVICE_ONLY, "--offload-compress"),
    "host_object": (*BOTH, "-c"),
    "host_object_compressed": (*BOTH, "-c", "--offload-compress"),
    "bare": ("--offload-arch=gfx942", "--offload-device-only", "--no-gpu-bundle-output"),
}


@pytest.mark.parametrize("case", MADE)
def test_the_code_object_for_this_chip_is_found(case):
    (found,) = bundle.select(compiled(*MADE[case]))
    assert list(CodeObject.parse(found).kernels) == ["add"]


@pytest.mark.parametrize("case", ["bundle", "compressed", "host_object"])
def test_every_target_of_a_bundle_is_listed(case):
    entries = bundle.unbundle(compiled(*MADE[case]))
    assert [e.target for e in entries if e.kind != "host"] == ["gfx90a", "gfx942"]


def test_a_bundle_that_the_bundler_tool_made_is_opened(tmp_path):
    code_object, made = tmp_path / "k.co", tmp_path / "k.bundle"
    code_object.write_bytes(compiled(*MADE["bare"]))
    tool = find_compiler()[0].replace("/clang-", "/clang-offload-bundler-")
    targets = "host-x86_64-unknown-linux-gnu,hip-amdgcn-amd-amdhsa--gfx942:sramecc+:xnack-"
    inputs = ["--input=/dev/null", f"--input={code_object}", f"--output={made}"]
    subprocess.run([tool, "-type=o", f"-targets={targets}", *inputs], check=True)
    (found,) = bundle.select(made.read_bytes())
    assert found == code_object.read_bytes()


def test_several_bundles_in_one_file_are_all_opened():
    other = compiled(*MADE["compressed"], source="KERNEL other() {}")
    program = load(compiled(*MADE["bundle"]).ljust(1 << 15, b"\0") + other)
    assert list(program) == ["add", "other"]


def with_header(version, layout, method, payload, expanded):
    head = struct.calcsize(layout)
    sizes = {1: (len(expanded),)}.get(version, (head + len(payload), len(expanded)))
    return struct.pack(layout, b"CCOB", version, method, *sizes, 0) + payload


@pytest.mark.parametrize("version", bundle.COMPRESSED_HEADERS)
def test_every_version_of_the_compressed_header_is_read(version):
    plain = compiled(*MADE["bundle"])
    layout = bundle.COMPRESSED_HEADERS[version]
    made = with_header(version, layout, bundle.ZLIB, zlib.compress(plain), plain)
    assert bundle.select(made) == bundle.select(plain)


def bad_inputs():
    plain, packed = compiled(*MADE["bundle"]), compiled(*MADE["compressed"])
    layout = bundle.COMPRESSED_HEADERS[2]
    liar = with_header(2, layout, bundle.ZLIB, zlib.compress(plain), plain + b"more")
    garbage = with_header(2, layout, bundle.ZLIB, b"garbage" * 9, plain)
    return {
        "empty": (b"", "neither a code object nor an offload bundle"),
        "text": (b"hello, world", "neither a code object nor an offload bundle"),
        "bundle_cut_in_its_table": (plain[:40], "truncated offload bundle"),
        "bundle_cut_in_a_name": (plain[:60], "name is cut off"),
        "bundle_cut_in_its_code": (plain[:-100], "truncated offload bundle"),
        "too_many_entries": (plain[:24] + b"\xff" * 8 + plain[32:], "claims"),
        "compressed_cut": (packed[:-10], "truncated compressed bundle"),
        "compressed_header_cut": (packed[:12], "truncated compressed bundle"),
        "compressed_corrupt": (packed[:60] + b"\xff" * 40 + packed[100:], "corrupt compressed"),
        "compressed_version": (packed[:4] + b"\x63" + packed[5:], "version 99"),
        "compressed_method": (packed[:6] + b"\x07" + packed[7:], "method 7"),
        "compressed_sizes_lie": (liar, "were promised"),
        "zlib_garbage": (garbage, "corrupt compressed bundle"),
        "host_without_kernels": (
            objects.build("int f() { return 1; }", ("-x", "c++", "-c")),
            "a host ELF file without HIP kernels",
        ),
    }


@pytest.mark.parametrize("case", bad_inputs())
def test_a_damaged_file_is_refused_in_words(case):
    data, message = bad_inputs()[case]
    with pytest.raises(CodeObjectError, match=message):
        bundle.select(data)


@pytest.mark.parametrize("architecture", ["gfx908", "gfx90a", "gfx1100"])
def test_code_for_another_chip_is_refused_with_its_name(architecture):
    made = compiled(f"--offload-arch={architecture}", *DEVICE_ONLY)
    with pytest.raises(WrongProcessor, match=f"{architecture}.*--offload-arch=gfx942"):
        load(made)
    (entry,) = [e for e in bundle.unbundle(made) if e.kind != "host"]
    with pytest.raises(WrongProcessor, match=architecture):
        load(entry.data)


def test_code_built_for_xnack_is_not_taken_for_this_chip():
    made = compiled("--offload-arch=gfx942:xnack+", *DEVICE_ONLY)
    with pytest.raises(WrongProcessor, match=r"gfx942:xnack\+"):
        bundle.select(made)


def test_mutated_bundles_are_opened_or_refused():
    import random

    for original in (compiled(*MADE["bundle"]), compiled(*MADE["compressed"])):
        for seed in range(150):
            rng = random.Random(seed)
            data = bytearray(original)
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(min(len(data), 256))] = rng.randrange(256)
            try:
                for found in bundle.select(bytes(data)):
                    CodeObject.parse(found)
            except CodeObjectError:
                pass
