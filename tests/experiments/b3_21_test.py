"""B3.21: two kernels on the same inputs, each within its floor; no comparison is no pass."""

import json

import pytest

from experiments import b3_21, flags
from experiments.align import faults, records
from experiments.align.faults import Fault, patch


class Run:
    def __init__(self, out_dir, *arguments):
        argv = ["b3_21", f"--out_dir={out_dir}", "--prompt=p0_short", "--layers=0,1", *arguments]
        self.code = flags.run(b3_21.main, b3_21.__doc__, argv)
        self.text = "\n".join(json.loads((out_dir / "b3_21_run.json").read_text())["lines"])
        self.events = list(records.read(out_dir / "b3_21.jsonl"))


@pytest.fixture
def inject(monkeypatch):
    def add(file, old, new):
        fault = Fault("mine", "", patch(file, old, new), found_at=(0, "embed"))
        monkeypatch.setitem(faults.FAULTS, "mine", fault)
        return "--inject_fault=mine"

    return add


def test_both_mfma_routes_load_and_agree_with_their_shadows(tmp_path):
    run = Run(tmp_path)
    assert run.code == flags.EXIT_PASS, run.text
    for route in ("manual/mfma", "fused/mfma"):
        assert f"{route} at load: 291 tensors" in run.text
        assert f"{route} p0_short: 128 launches by both kernels" in run.text
    seen = [event for event in run.events if event["event"] == "shadow"]
    assert len(seen) == 2 * 2 * 2 and all(0 < event["apart"] < 1e-2 for event in seen)


def test_matrix_cores_that_lose_a_head_are_found_and_the_shadow_is_clean(inject, tmp_path):
    """The grid of launches is one kv head short; the shadow has a grid of its own."""
    old, new = "(workgroups, K * math.ceil(", "(workgroups, (K - 1) * math.ceil("
    fault = inject("hip_engine.launcher", old, new)
    run = Run(tmp_path, "--route=manual/mfma", fault)
    assert run.code == flags.EXIT_FAIL
    assert "mfma kernel, attn.out of layer 0, position 0: " in run.text
    assert "valu kernel, attn.out of layer 0" not in run.text


def test_a_route_that_never_ran_a_matrix_core_is_no_comparison(inject, tmp_path):
    old, new = 'f"attn_{route.kernel}_{route.matmul}_', 'f"attn_{route.kernel}_valu_'
    run = Run(tmp_path, "--route=fused/mfma", inject("hip_engine.routes", old, new))
    assert run.code == flags.EXIT_INCONCLUSIVE
    assert "fused/mfma p0_short: not attested: fused/valu executed, 0 launches were" in run.text


def test_a_route_that_does_not_load_is_a_failure_that_says_so(inject, tmp_path):
    old = "np.ascontiguousarray(tensor.data))"
    fault = inject("hip_engine.engine", old, "np.ascontiguousarray(tensor.data)[:-1])")
    run = Run(tmp_path, "--route=fused/mfma", fault)
    assert run.code == flags.EXIT_FAIL
    assert "fused/mfma fails at load: " in run.text


@pytest.mark.parametrize(
    "argument, words",
    [("--route=manual/valu", "b3_21 is about mfma"), ("--kv_dtype=float32", "float32")],
)
def test_what_has_no_matrix_cores_is_refused(argument, words, tmp_path, capsys):
    code = flags.run(b3_21.main, b3_21.__doc__, ["b3_21", f"--out_dir={tmp_path}", argument])
    assert code == flags.EXIT_USAGE and words in capsys.readouterr().err
