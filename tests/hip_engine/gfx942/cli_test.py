"""python -m hip_engine.gfx942: info and run on foreign objects, and gfx942.load from Python."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hip_engine import gfx942
from hip_engine.errors import CodeObjectError, DeviceFault, LaunchError, UnsupportedInstruction
from hip_engine.gfx942.cli import info, main
from hip_engine.gfx942.cli.run import read_arguments
from hip_engine.toolchain import find_compiler
from tests.hip_engine.gfx942 import objects

SOURCE = """
KERNEL saxpy(float a, const float* x, float* y, int n) {
  int i = bid() * 64 + tid();
  if (i < n) y[i] = __builtin_fmaf(a, x[i], y[i]);
}
KERNEL store_at(unsigned long address) { *(volatile int*)address = 1; }
"""
# A kernel without metadata: out[i] = i + amount for a wave; s[0:1] points at the arguments.
ASSEMBLY = """
  s_load_dwordx2 s[2:3], s[0:1], 0x0
  s_load_dword s4, s[0:1], 0x8
  s_waitcnt lgkmcnt(0)
  v_and_b32 v0, 0x3ff, v0
  v_lshlrev_b32 v1, 2, v0
  v_add_u32 v2, s4, v0
  global_store_dword v1, v2, s[2:3]
"""
UNKNOWN = "  v_smfmac_f32_16x16x32_f16 v[0:3], v[4:5], v[6:9], v10"


@pytest.fixture(scope="module")
def code():
    return objects.hip(SOURCE)


@pytest.fixture(scope="module")
def bare():
    """Hand-written assembly, without metadata."""
    return objects.kernels(objects.kernel_text("iota", ASSEMBLY, pointers=2), with_metadata=False)


@pytest.fixture
def in_file(tmp_path):
    def write(content, name="file.co"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return write


def command(capsys, *arguments):
    """Exit code, stdout and stderr of one command."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# ---- From Python


def test_arrays_are_copied_in_and_back(code):
    x, y = np.arange(100, dtype=np.float32), np.ones(100, np.float32)
    record = gfx942.load(code)["saxpy"].launch(2, 64, [2.0, x, y, 100])
    np.testing.assert_array_equal(y, 1 + 2 * np.arange(100, dtype=np.float32))
    assert record.executed["vmem_store"] == 2


def test_strided_and_read_only_arrays_are_respected(code):
    x, whole = np.arange(64, dtype=np.float32), np.zeros((64, 2), np.float32)
    x.setflags(write=False)
    gfx942.load(code)["saxpy"].launch(1, 64, [1.0, x, whole[:, 1], 64])
    np.testing.assert_array_equal(whole[:, 1], x)
    assert not whole[:, 0].any()


def test_the_same_array_twice_is_one_buffer(code):
    x = np.full(64, 3, np.float32)
    gfx942.load(code)["saxpy"].launch(1, 64, [1.0, x, x, 64])
    assert set(x) == {6.0}


def test_a_kernel_without_metadata_takes_a_layout_or_raw_bytes(bare):
    kernel = gfx942.load(bare)["iota"]
    out = np.zeros(64, np.int32)
    kernel.launch(1, 64, [out, 7], layout="Pi")
    np.testing.assert_array_equal(out, np.arange(7, 71))
    with pytest.raises(LaunchError, match="no argument metadata.*layout"):
        kernel.launch(1, 64, [out, 7])
    with pytest.raises(LaunchError, match="layout 'Pi'"):
        kernel.launch(1, 64, [out], layout="Pi")
    with pytest.raises(LaunchError, match="bytes of arguments"):
        kernel.launch(1, 64, b"x" * 400)


def test_kernels_are_translated_when_they_are_asked_for():
    objects_ = (
        objects.kernel_text("good", ASSEMBLY, pointers=2),
        objects.kernel_text("bad", UNKNOWN),
    )
    program = gfx942.load(objects.kernels(*objects_))
    out = np.zeros(64, np.int32)
    program["good"].launch(1, 64, [out, np.uint64(7)])
    assert out[0] == 7
    with pytest.raises(UnsupportedInstruction, match="bad.*smfmac"):
        program["bad"].launch(1, 64, [np.zeros(1)])
    with pytest.raises(UnsupportedInstruction):
        program.device.load(objects.kernels(*objects_))


def test_memory_of_a_launch_is_given_back_even_when_it_faults(code):
    program = gfx942.load(code)
    before = len(program.device.memory._buffers)
    with pytest.raises(DeviceFault):
        program["store_at"].launch(1, 64, [np.uint64(8)])
    with pytest.raises(LaunchError):
        program["saxpy"].launch(1, 64, [1.0, np.zeros(3, np.float32)])
    assert len(program.device.memory._buffers) == before


def test_a_kernel_that_is_not_there_names_those_that_are(code):
    with pytest.raises(CodeObjectError, match="no kernel 'absent'.*saxpy, store_at"):
        gfx942.load(code)["absent"]


# ---- info


def test_info_shows_what_the_compiler_says_about_registers(tmp_path):
    """Against clang's own report: -Rpass-analysis=kernel-resource-usage."""
    source = tmp_path / "k.hip"
    body = """
    KERNEL big(float* x) {
      SHARED float scratch[5000];
      float a[64];
      for (int i = 0; i < 64; i++) a[i] = x[tid() + 64 * i];
      for (int j = 0; j < 9; j++)
        for (int i = 0; i < 64; i++) a[i] = __builtin_fmaf(a[i], a[(i * 7 + 1) & 63], x[j]);
      scratch[tid()] = a[tid() & 3];
      barrier();
      for (int i = 0; i < 64; i++) x[tid() + 64 * i] = a[i] + scratch[i];
    }
    __attribute__((amdgpu_flat_work_group_size(256, 256))) KERNEL small(int* x) { x[tid()] = 1; }
    """
    source.write_text(objects.PRELUDE + body)
    flags = [*objects.HIP_FLAGS, "-O3", "-Rpass-analysis=kernel-resource-usage"]
    made = tmp_path / "k.co"
    build = [find_compiler()[0], *flags, str(source), "-o", str(made)]
    remarks = subprocess.run(build, capture_output=True, text=True, check=True).stderr
    reported = {}
    for line in remarks.splitlines():
        if match := re.search(r"remark: .*?(?:Function Name: (\w+)|(\w[^:]*): (\d+))", line):
            if match[1]:
                kernel = reported.setdefault(match[1], {})
            else:
                kernel[match[2].strip()] = int(match[3])
    for facts in info.facts_of_file(made.read_bytes()):
        said = reported[facts.symbol]
        assert facts.agprs == said["AGPRs"] and facts.vgprs == said["VGPRs"] + said["AGPRs"]
        assert facts.lds_bytes == said["LDS Size [bytes/block]"]
        assert facts.scratch_bytes == said["ScratchSize [bytes/lane]"]
        assert facts.occupancy.waves_per_simd == said["Occupancy [waves/SIMD]"]


def test_info_counts_instructions_and_names_the_bound(code, bare, capsys, in_file):
    (facts,) = info.facts_of_file(code, "saxpy")
    assert facts.classes["vmem_load"] == 2 and facts.opcodes["global_store_dword"] == 1
    assert [a[1:] for a in facts.arguments] == [
        (0, 4, "by_value"),
        (8, 8, "global_buffer"),
        (16, 8, "global_buffer"),
        (24, 4, "by_value"),
    ]
    assert not facts.refused
    exit_code, out, _ = command(capsys, "info", in_file(code))
    assert exit_code == 0 and "saxpy" in out and "of 8 waves a SIMD" in out
    exit_code, out, _ = command(capsys, "info", in_file(bare))
    assert exit_code == 0 and "not described: run with --layout" in out


def test_info_reports_what_cannot_run_and_goes_on(capsys, in_file):
    data = objects.kernels(objects.kernel_text("bad", UNKNOWN))
    exit_code, out, _ = command(capsys, "info", in_file(data))
    assert exit_code == 0
    assert "cannot run here" in out and "v_smfmac_f32_16x16x32_f16" in out


def test_info_for_programs_is_json(code, capsys, in_file):
    exit_code, out, _ = command(capsys, "info", in_file(code), "--json", "--kernel=sax*")
    (facts,) = json.loads(out)
    assert exit_code == 0 and facts["symbol"] == "saxpy" and facts["occupancy"]["waves_per_simd"]


OCCUPANCY = {
    "few_registers": (8, 0, 256, 8, "wave slots"),
    "half": (256, 0, 64, 2, "registers"),
    "all": (512, 0, 64, 1, "registers"),
    "lds": (8, 40000, 256, 1, "LDS"),
    "block": (168, 0, 1024, 0, "block size"),
}


@pytest.mark.parametrize("case", OCCUPANCY)
def test_occupancy_is_bound_by_registers_lds_or_the_block(case):
    vgprs, lds, block, waves, bound = OCCUPANCY[case]
    text = objects.kernel_text("k", "", lds=lds, vgprs=vgprs, accum=min(vgprs, 256))
    (found,) = info.facts_of_file(objects.kernels(text), block_items=block)
    assert found.vgprs_allocated == vgprs
    assert (found.occupancy.waves_per_simd, found.occupancy.bound) == (waves, bound)


# ---- run


def test_run_writes_what_the_kernel_left(code, capsys, in_file, tmp_path):
    x = {"dtype": "float32", "data": [1, 2, 3]}
    given = {"a": 2.0, "x": x, "y": {"dtype": "float32", "zeros": [3]}, "n": 3}
    out = tmp_path / "out.npz"
    exit_code, shown, _ = command(
        capsys,
        *("run", in_file(code), "--kernel=saxpy", "--grid=1", "--block=64"),
        *(f"--args={in_file(given, 'args.json')}", f"--out={out}"),
    )
    assert exit_code == 0 and "3 of 3" in shown
    np.testing.assert_array_equal(np.load(out)["y"], [2, 4, 6])


def test_run_takes_npz_and_hand_written_assembly(bare, capsys, in_file, tmp_path):
    arguments, out = tmp_path / "args.npz", tmp_path / "out.npz"
    np.savez(arguments, arg0=np.zeros(64, np.int32), arg1=np.int32(5))
    exit_code, _, err = command(
        capsys,
        *("run", in_file(bare), "--layout=Pi", f"--args={arguments}", f"--out={out}"),
    )
    assert (exit_code, err) == (0, "")
    np.testing.assert_array_equal(np.load(out)["arg0"], np.arange(5, 69))


def test_run_finds_faults_with_a_sanitizer_and_exits_1(code, capsys, in_file):
    given = in_file([3], "args.json")
    exit_code, _, err = command(
        capsys, "run", in_file(code), "--kernel=store_at", f"--args={given}", "--sanitize=init"
    )
    assert exit_code == 1 and err.startswith("gfx942: ") and err.count("\n") == 1
    assert "store_at" in err and "0x3" in err


def test_run_counts_what_memory_instructions_did(bare, capsys, in_file):
    given = in_file([{"dtype": "int32", "zeros": [64]}, 1], "args.json")
    exit_code, out, _ = command(
        capsys, "run", in_file(bare), "--layout=Pi", f"--args={given}", "--counters"
    )
    assert exit_code == 0 and "argument 0 0 read, 256 written" in " ".join(out.split())


BAD_RUNS = {
    "no_file": (["run", "/nonexistent"], None, "No such file"),
    "no_kernel": (["run", "CODE", "--kernel=absent"], None, "it has: saxpy, store_at"),
    "kernel_not_said": (["run", "CODE"], None, "--kernel is needed"),
    "grid_of_zero": (["run", "CODE", "--kernel=saxpy", "--grid=0"], [1.0, 0, 0, 1], "positive"),
    "grid_of_words": (["run", "CODE", "--grid=many"], None, "use 4 or 4,2,1"),
    "block_too_large": (
        ["run", "CODE", "--kernel=saxpy", "--block=2048"],
        [1.0, 0, 0, 1],
        "a block of 2048",
    ),
    "too_much_lds": (
        ["run", "CODE", "--kernel=saxpy", "--lds=70000"],
        [1.0, 0, 0, 1],
        "70000 bytes of LDS",
    ),
    "too_few_arguments": (["run", "CODE", "--kernel=saxpy"], [1.0], "takes 4 arguments, 1 given"),
    "argument_too_wide": (
        ["run", "CODE", "--kernel=saxpy"],
        [1.0, 0, 0, 1 << 40],
        "argument 3.*4 bytes",
    ),
    "not_a_number": (["run", "CODE", "--kernel=saxpy"], ["x", 0, 0, 1], "neither a number"),
    "unknown_dtype": (
        ["run", "CODE", "--kernel=saxpy"],
        [{"dtype": "float7", "data": [1]}],
        "float7",
    ),
    "no_data": (["run", "CODE", "--kernel=saxpy"], [{"dtype": "int8"}], "one of data, zeros"),
    "not_json": (["run", "CODE", "--kernel=saxpy", "--args=CODE"], None, "--args="),
    "out_folder": (["run", "CODE", "--out=/nonexistent/o.npz"], None, "no folder"),
    "unknown_check": (["run", "CODE", "--kernel=saxpy", "--sanitize=luck"], None, "luck"),
    "info_of_text": (["info", __file__], None, "neither a code object"),
    "info_of_no_kernel": (["info", "CODE", "--kernel=absent"], None, "it has: saxpy, store_at"),
    "no_command": ([], None, "required: command"),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_bad_input_is_one_line_and_exit_2(case, code, capsys, in_file):
    arguments, given, message = BAD_RUNS[case]
    file = str(in_file(code))
    arguments = [a.replace("CODE", file) for a in arguments]
    if given is not None:
        arguments.append(f"--args={in_file(given, 'args.json')}")
    exit_code, _, err = command(capsys, *arguments)
    assert exit_code == 2
    assert re.search(message, err) and "Traceback" not in err
    assert err.startswith(("gfx942: ", "usage: ")) and err.count("gfx942: ") <= 1


def test_help_teaches_every_command(capsys):
    exit_code, out, _ = command(capsys, "--help")
    assert exit_code == 0 and all(word in out for word in ("info", "run", "hip", "examples"))
    for name in ("info", "run", "hip"):
        exit_code, out, _ = command(capsys, name, "--help")
        assert exit_code == 0 and f"python -m hip_engine.gfx942 {name}" in out


def test_the_module_runs_from_a_shell(code, in_file):
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "hip_engine.gfx942", "info", str(in_file(code))],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "store_at" in done.stdout


def test_values_of_a_file_keep_their_types(in_file):
    given = [1, 2.5, {"dtype": "float16", "value": 1.5}, {"dtype": "int8", "data": [[1], [2]]}]
    one, two, half, array = read_arguments(in_file(given, "a.json"))
    assert (one, two) == (1, 2.5) and half == np.float16(1.5) and half.dtype == np.float16
    assert array.dtype == np.int8 and array.shape == (2, 1)
