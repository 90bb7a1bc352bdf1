"""The command: laws and torch agree, a disagreement is exit 4, and a missing torch is said."""

import importlib.util
import re

import numpy as np
import pytest

from experiments import flags, oracle_selfcheck, reference, torch_voice
from experiments.report import pages, run_file
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from greta_jax.selfcheck import Finding
from tests.tiny_gguf import write_architecture


@pytest.fixture
def check(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(flags, "configure_jax", lambda *device: None)

    def run(path) -> tuple[int, str]:
        argv = ["oracle_selfcheck", f"--model={path}", f"--out_dir={tmp_path}"]
        return flags.run(oracle_selfcheck.main, oracle_selfcheck.__doc__, argv), capsys.readouterr()

    return run


@pytest.mark.parametrize("which", ["tiny_path", "quantised_path"])
def test_every_law_and_torch_agree(check, which, request):
    code, shown = check(request.getfixturevalue(which))
    assert code == 0 and "agrees_with_torch" in shown.out and "broken" not in shown.out
    assert re.search(r"(\d+) of \1 laws hold", shown.out)


def test_every_law_is_on_the_page(check, tiny_path, tmp_path):
    check(tiny_path)
    (section,) = pages.page(run_file.read(tmp_path / "oracle_selfcheck_run.json")).sections[:1]
    laws = {row[0]: row[2] for row in section.table.rows}
    assert len(laws) > 10 and set(laws.values()) == {"holds"}
    assert section.table.tones == {"holds": "good"}


def test_a_missing_torch_is_said(check, tiny_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else found(name)
    )
    code, shown = check(tiny_path)
    assert code == 0 and "not run: agreement with torch: torch is not installed" in shown.out


def test_a_model_that_torch_does_not_know_is_said(tmp_path):
    path = write_architecture(tmp_path / "model.gguf", "gemma2")
    assert "for plain llama files" in torch_voice.absent(path)


def test_disagreement_with_torch_is_exit_4(check, tiny_path, monkeypatch):
    """One rounding of the residual stream to fp32, in one layer."""
    right = torch_voice.TorchLlama._attention

    def wrong(self, h, layer):
        out = right(self, h, layer)
        return out.float().double() if layer == 1 else out

    monkeypatch.setattr(torch_voice.TorchLlama, "_attention", wrong)
    code, shown = check(tiny_path)
    assert code == 4 and "FAIL  agrees_with_torch" in shown.out


def test_a_broken_law_is_told_by_its_line(tiny_path, monkeypatch):
    oracle = Oracle.open(tiny_path, Policy.fp64())
    assert all(law.passed for law in reference.laws(oracle))
    broken = [Finding("attention_weights_sum_to_one", np.nan)]
    monkeypatch.setattr(reference, "selfcheck", lambda oracle, quick: broken)
    broken = [law for law in reference.laws(oracle) if not law.passed]
    assert "FAIL  attention_weights_sum_to_one" in str(broken[0])
