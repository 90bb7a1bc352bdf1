"""A failed run leaves its op to be replayed: the same error, bit for bit, on oracle and device."""

import json
import shutil

import numpy as np
import pytest

from experiments import b3_20, flags, launch_capture, replay_op
from experiments.align import records
from experiments.align.errors import TraceError

ARGUMENTS = ("--prompt=p0_short", "--layers=0,1", "--max_tokens=1")


def run(module, out_dir, *arguments):
    name = module.__name__.rpartition(".")[2]
    argv = [name, f"--out_dir={out_dir}", *arguments]
    return flags.run(module.main, module.__doc__, argv, getattr(module, "MORE", ()))


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """The bundle of a failed run, and the run's records."""
    out_dir = tmp_path_factory.mktemp("failed")
    code = run(b3_20, out_dir, *ARGUMENTS, "--inject_fault=kv_base_of_layer_0")
    assert code == flags.EXIT_FAIL
    found = list(records.read(out_dir / "b3_20_p0_short_run_attn_verify.jsonl"))
    text = (out_dir / "b3_20_matrix_summary.txt").read_text()
    return out_dir / "b3_20_p0_short_repro", found, text


@pytest.fixture
def bundle(failed, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(failed[0], tmp_path / "bundle")


def replay(bundle, out_dir):
    code = run(replay_op, out_dir / "out", f"--bundle={bundle}")
    path = out_dir / "out" / "replay_op_run.json"
    return code, "\n".join(json.loads(path.read_text())["lines"]) if path.exists() else ""


def test_the_op_alone_has_the_error_of_the_run_bit_for_bit(failed, tmp_path):
    bundle, found, text = failed
    code, lines = replay(bundle, tmp_path)
    assert code == flags.EXIT_FAIL
    first = found[-1]["first_divergence"]
    assert (first["layer"], first["site"]) == (1, "attn.out")
    assert f"local error {first['local_max']:.17g} at" in lines
    assert f"{first['local_over_floor']:.17g} x its floor; recorded: the same, bit for bit" in lines
    assert "attn_manual_valu_f16_h64_g4 + attn_merge_chunks launched again" in lines
    assert "every byte as in the run" in lines
    assert "kernel: its output is the tensor that was judged" in lines
    assert f"python -m experiments.replay_op --bundle={bundle}" in text


def test_the_manifest_says_what_ran(failed):
    bundle, found, _ = failed
    manifest = json.loads((bundle / "manifest.json").read_text())
    for name in ("model_sha256", "prompt_sha256"):
        assert manifest[name] == found[0][name]
    assert manifest["code_object_sha256"] == found[0]["code_object_sha256"]
    assert manifest["config"]["inject_fault"] == "kv_base_of_layer_0"
    assert manifest["facts"]["commit"] == found[0]["commit"]
    assert {"python", "jax", "numpy", "llvmlite"} <= manifest["versions"].keys()
    assert manifest["seed"] is None and manifest["launches"] == "captured"


def test_a_changed_input_is_not_the_recorded_error(bundle, tmp_path):
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["judgement"]["local_max"] *= 1 + 1e-15
    path.write_text(json.dumps(manifest))
    code, lines = replay(bundle, tmp_path)
    assert code == flags.EXIT_FAIL
    assert "the oracle's replay is not what was recorded: local_max" in lines


def test_changed_memory_is_seen_in_what_the_kernel_writes(bundle, tmp_path):
    with np.load(bundle / "memory.npz") as stored:
        memory = {label: stored[label] for label in stored.files}
    memory["attn.q_rope"][5] ^= 64
    np.savez_compressed(bundle / "memory.npz", **memory)
    _, lines = replay(bundle, tmp_path)
    assert "the launches did not repeat what was recorded: attn.q_rope" in lines


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda folder: (folder / "manifest.json").unlink(), "is no bundle of a failed op"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json lacks layer"),
        (lambda folder: (folder / "code_object.co").write_bytes(b"x"), "is corrupt"),
        (lambda folder: (folder / "launches.json").unlink(), "launches"),
        (lambda folder: (folder / "got" / "layer_1.safetensors").write_bytes(b""), "not whole"),
    ],
)
def test_a_bundle_that_is_not_whole_is_refused(bundle, tmp_path, capsys, spoil, words):
    spoil(bundle)
    code, _ = replay(bundle, tmp_path)
    assert code == flags.EXIT_USAGE
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_launches_that_were_not_captured_are_no_replay(bundle, tmp_path):
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"launches": "a GPU"}))
    _, lines = replay(bundle, tmp_path)
    assert "the kernels were not replayed: a GPU" in lines


def test_a_folder_without_launches_is_refused(tmp_path):
    with pytest.raises(TraceError, match="holds no captured launches"):
        launch_capture.replay(None, b"", tmp_path)


def test_a_run_that_passes_leaves_no_bundle(tmp_path):
    assert run(b3_20, tmp_path, *ARGUMENTS) == flags.EXIT_PASS
    assert not list(tmp_path.glob("*_repro"))
