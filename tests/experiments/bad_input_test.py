"""Bad input: one line that names the thing and the remedy, exit 2, no traceback."""

import os
import struct
import subprocess
import sys

import pytest

from experiments import b3_20, flags

MODEL = flags.DEFAULT_MODEL


@pytest.fixture(autouse=True)
def no_greta_variables(monkeypatch):
    for name in [name for name in os.environ if name.startswith("GRETA_")]:
        monkeypatch.delenv(name)


def refused(capsys, *arguments):
    """The one line that a refused run prints."""
    code = flags.run(b3_20.main, b3_20.__doc__, ["b3_20.py", *arguments])
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("...")]
    assert code == flags.EXIT_USAGE
    assert len(lines) == 1 and lines[0].startswith("b3_20: ")
    return lines[0]


def test_a_missing_file(capsys, tmp_path):
    path = tmp_path / "nowhere.gguf"
    assert f"{path}: no such file" in refused(capsys, f"--model={path}")


@pytest.mark.parametrize("size", [0, 1000, 5_000_000])
def test_a_truncated_gguf(capsys, tmp_path, size):
    path = tmp_path / "cut.gguf"
    path.write_bytes(MODEL.read_bytes()[:size])
    assert str(path) in refused(capsys, f"--model={path}")


def test_a_file_that_is_no_gguf(capsys, tmp_path):
    path = tmp_path / "text.gguf"
    path.write_text("I am not a model")
    assert "not a GGUF" in refused(capsys, f"--model={path}")


def test_another_architecture(capsys, tmp_path):
    data = bytearray(MODEL.read_bytes())
    at = data.index(b"llama", data.index(b"general.architecture"))
    data[at : at + 5] = b"mamba"
    path = tmp_path / "mamba.gguf"
    path.write_bytes(data)
    assert "'mamba' is not supported; supported: llama" in refused(capsys, f"--model={path}")


def test_an_unknown_dtype(capsys, tmp_path):
    data, name = bytearray(MODEL.read_bytes()), b"blk.3.attn_q.weight"
    at = data.index(name) + len(name)
    (dimensions,) = struct.unpack_from("<I", data, at)
    struct.pack_into("<I", data, at + 4 + 8 * dimensions, 99)
    path = tmp_path / "dtype.gguf"
    path.write_bytes(data)
    line = refused(capsys, f"--model={path}")
    assert "'blk.3.attn_q.weight' has the unknown dtype 99" in line


def test_a_prompt_longer_than_the_context(capsys, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("word soup " * 3000)
    line = refused(capsys, f"--prompt={path}")
    assert "the model's context is 2048: use a shorter prompt" in line


def test_a_prompt_that_is_no_text(capsys, tmp_path):
    path = tmp_path / "noise.txt"
    path.write_bytes(b"\xff\xfe\x00")
    assert "as text" in refused(capsys, f"--prompt={path}")


@pytest.mark.parametrize(
    "argument, words",
    [
        ("--route=fused/banana", "unknown route 'fused/banana': write KERNEL/MATMUL"),
        ("--route=fused", "unknown route 'fused'"),
        ("--layers=0,32", "layer 32 does not exist: the model has layers 0 to 31"),
        ("--layers=first", "'first' is no layer"),
        ("--prompt=p9", "unknown prompt 'p9': use one of p0_short, p4_sys"),
        ("--prompt=", "--prompt is empty"),
        ("--prompt=p4_sys,p4_sys", "p4_sys twice"),
        ("--points=attn.outt", "unknown site 'attn.outt': did you mean 'attn.out'"),
        ("--inject_fault=kv_base_of_layer_1", "did you mean kv_base_of_layer_0"),
        ("--max_tokens=0", "at least 1 token"),
        ("--max_tokens=two", "--max_tokens=two"),
        ("--precision=fp16", "should be one of <fp64|fp32>"),
        ("--device=tpu", "should be one of <emulated|mi300x>"),
        ("--lyers=0", "Did you mean: layers"),
        ("p4_sys", "unexpected argument 'p4_sys'"),
    ],
)
def test_a_bad_flag(capsys, argument, words, tmp_path):
    assert words in refused(capsys, f"--out_dir={tmp_path}", argument)


def test_a_route_that_the_cache_cannot_have(capsys, tmp_path):
    flags_of_it = ("--route=manual/mfma", "--kv_dtype=float32", f"--out_dir={tmp_path}")
    assert "nearest are manual/valu, and manual/mfma with a cache" in refused(capsys, *flags_of_it)


def test_an_mi300x_that_is_not_there(capsys, tmp_path):
    if os.path.exists("/dev/kfd"):
        pytest.skip("this machine may have one")
    line = refused(capsys, "--device=mi300x", f"--out_dir={tmp_path}")
    assert "no HIP runtime" in line and "--device=emulated" in line


def test_an_out_dir_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused(capsys, f"--out_dir={tmp_path / 'file' / 'below'}")
    assert "choose another with --out_dir" in line


def test_an_unknown_variable_is_refused_with_the_nearest(capsys, monkeypatch):
    monkeypatch.setenv("GRETA_TRACE_ATTN_LAYER", "0")
    line = refused(capsys)
    assert "unknown variable GRETA_TRACE_ATTN_LAYER" in line
    assert "nearest is GRETA_TRACE_ATTN_LAYERS" in line


def test_a_switch_is_0_or_1(capsys, monkeypatch):
    monkeypatch.setenv("GRETA_TRACE_KV_INVARIANTS", "yes")
    assert "GRETA_TRACE_KV_INVARIANTS='yes': use 0 or 1" in refused(capsys)


def test_debug_shows_the_traceback(capsys):
    code = flags.run(b3_20.main, "", ["b3_20.py", "--model=/nowhere.gguf", "--debug"])
    assert code == flags.EXIT_USAGE
    assert "Traceback" in capsys.readouterr().err


def test_a_process_exits_with_2_and_one_line():
    command = [sys.executable, "-m", "experiments.b3_20", "--route=fused/banana"]
    done = subprocess.run(command, cwd=flags.ROOT, capture_output=True, text=True)
    assert done.returncode == flags.EXIT_USAGE and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_help_teaches_with_examples(capsys):
    assert flags.run(b3_20.main, b3_20.__doc__, ["b3_20.py", "--help"]) == 0
    text = capsys.readouterr().out
    for words in ("Examples:", "--inject_fault=kv_base_of_layer_0", "Exit codes", "--max_tokens"):
        assert words in text
