"""b3_20 on --device=mi300x, with the emulated runtime on the library path and nothing else."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from hip_engine.gfx942.hip_runtime import build
from tests.hip_engine.hip.conftest import ROOT

# What a record may differ in: the device's name, what only the emulated one can see (reads and
# instruction counts), what stands in for it, and where its buffers lie.
OF_THE_DEVICE = {
    *("device", "config", "kv_base_ptr_k", "kv_base_ptr_v"),
    *("k_read_offset_bytes", "v_read_offset_bytes", "k_write_offset_bytes", "v_write_offset_bytes"),
    *("kv_evidence", "attention_mfma", "attention_contains", "accesses_seen", "ops", "coverage"),
}
OF_ACCESSES = {"kv_LKS", "kv_position"}


def run(device, folder):
    variables = {**os.environ, "LD_LIBRARY_PATH": str(build.build())}
    command = [sys.executable, "-m", "experiments.b3_20", f"--device={device}"]
    command += ["--prompt=p5_ba", f"--out_dir={folder}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=variables)


@pytest.mark.slow
def test_b3_20_through_the_runtime_is_bit_identical_to_the_emulated_device(tmp_path):
    outcomes = {device: run(device, tmp_path / device) for device in ("emulated", "mi300x")}
    assert outcomes["emulated"].returncode == 0, outcomes["emulated"].stderr
    # A GPU neither counts instructions nor reports accesses: what stands in for it is said.
    assert outcomes["mi300x"].returncode == 0, outcomes["mi300x"].stdout
    assert "which bytes of the cache kernels read" in outcomes["mi300x"].stdout
    assert "attn_manual_valu_f16_h64_g4 contains 0" in outcomes["mi300x"].stdout

    def maps(device):
        with np.load(tmp_path / device / "b3_20_p5_ba_maps.npz") as file:
            return {name: file[name] for name in file.files}

    ref, got = maps("emulated"), maps("mi300x")
    assert ref.keys() == got.keys() and len(ref) > 5
    for name in ref.keys() - OF_ACCESSES:
        assert ref[name].tobytes() == got[name].tobytes(), name

    def records(device):
        path = tmp_path / device / "b3_20_p5_ba_run_attn_verify.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    for ref, got in zip(records("emulated"), records("mi300x"), strict=True):
        assert ref.keys() == got.keys()
        assert {k for k in ref if ref[k] != got[k]} <= OF_THE_DEVICE
        assert "attn_out_hash" in ref or ref["event"] != "attn_decode_verify"
