"""Determinism: equal runs pass; a host or a kernel that differs is named, and nothing before it."""

import json

import pytest

from experiments import determinism, fingerprints, flags
from experiments.align import faults, records
from experiments.align.faults import Fault, patch
from experiments.fingerprints import Event, Fingerprint


class Run:
    def __init__(self, out_dir, *arguments):
        prompt = out_dir / "one.txt"
        prompt.write_text("a")
        argv = ["determinism", f"--out_dir={out_dir}", f"--prompt={prompt}", "--max_tokens=1"]
        argv += arguments
        self.code = flags.run(determinism.main, determinism.__doc__, argv, determinism.MORE)
        self.text = "\n".join(json.loads((out_dir / "determinism_run.json").read_text())["lines"])
        self.events = list(records.read(out_dir / "determinism.jsonl"))


@pytest.fixture
def inject(monkeypatch):
    def add(file, old, new):
        fault = Fault("mine", "", patch(file, old, new), found_at=(0, "embed"))
        monkeypatch.setitem(faults.FAULTS, "mine", fault)
        return "--inject_fault=mine"

    return add


def test_runs_and_threads_are_equal_launch_by_launch(tmp_path):
    run = Run(tmp_path)
    assert run.code == flags.EXIT_PASS
    kernels = [event for event in run.events if event["event"] == "kernel"]
    assert {"rope", "gemv_q4_k", "attn_merge_chunks", "argmax"} <= {k["symbol"] for k in kernels}
    assert all(k["launches_that_differ"] == 0 < k["launches"] for k in kernels)
    assert any(k["launches_of_several_workgroups"] for k in kernels)
    runs = {event["run"] for event in run.events if event["event"] == "tensor"}
    assert len(runs) == 5


def test_a_table_that_the_host_makes_differently_is_the_hosts(inject, tmp_path):
    old = "angles = np.arange(positions, dtype=np.float64)[:, None] * frequencies"
    noise = "(1 + 1e-3 * np.random.default_rng().standard_normal())"
    run = Run(tmp_path, inject("hip_engine.memory_plan", old, f"{old} * {noise}"))
    assert run.code == flags.EXIT_FAIL
    assert "the host's write of rope.cos_sin is other bytes in run 2, 1 thread" in run.text


@pytest.mark.slow
def test_a_kernel_that_writes_other_bytes_is_named(inject, tmp_path):
    """How many elements it is told to compute varies: an argument, which no host write shows."""
    old = 'self._elementwise("swiglu", gate, up, output, count)'
    noise = "int(np.random.default_rng().integers(0, 9))"
    run = Run(tmp_path, inject("hip_engine.launcher", old, f"{old[:-1]} - {noise})"))
    assert run.code == flags.EXIT_FAIL
    assert "kernel swiglu, launch" in run.text and "all before it equal" in run.text
    kernels = {e["symbol"]: e for e in run.events if e["event"] == "kernel"}
    assert kernels["swiglu"]["launches_that_differ"] > 0


def launches(*digests):
    return [Event("launch", f"kernel{i}", digest) for i, digest in enumerate(digests)]


def fingerprint(name, events, **tensors):
    placed = {(0, 0, site.replace("_", ".")): digest for site, digest in tensors.items()}
    return Fingerprint(name, events, placed, (1, 2))


@pytest.mark.parametrize(
    "events, tensors, words",
    [
        (launches("a", "b", "c"), {"attn_q": "x"}, ""),
        (launches("a", "B", "C"), {"attn_q": "x"}, "kernel kernel1, launch 2,"),
        (launches("a", "b"), {"attn_q": "x"}, "has 2 launches and writes"),
        ([], {"attn_q": "x"}, ""),
        ([], {"attn_q": "y"}, "attn.q of layer 0, position 0, of got is not"),
        ([], {"attn_k": "x"}, "do not hold the same tensors"),
        ([Event("host write", "w", "a")], {"attn_q": "x"}, "does host write w where ref does"),
    ],
)
def test_the_first_difference_is_named(events, tensors, words):
    ref = fingerprint("ref", launches("a", "b", "c"), attn_q="x")
    found = fingerprints.first_difference(ref, fingerprint("got", events, **tensors))
    assert words in found and bool(words) == bool(found)


def test_one_run_alone_is_refused(tmp_path, capsys):
    argv = ["determinism", "--runs=1", f"--out_dir={tmp_path}"]
    code = flags.run(determinism.main, determinism.__doc__, argv, determinism.MORE)
    assert code == flags.EXIT_USAGE and "at least 2 runs" in capsys.readouterr().err
