"""The law of prefill and decode: kept by the engine, broken where a fault of one side breaks it."""

import json

import pytest

from experiments import b3_19, equivalence, flags, law
from experiments.align import faults, records
from experiments.align.faults import Fault, patch

ARGUMENTS = ("--prompt=p0_short", "--layers=0,1", "--max_tokens=2")


class Run:
    def __init__(self, module, out_dir, *arguments):
        self.name = module.__name__.rpartition(".")[2]
        argv = [self.name, f"--out_dir={out_dir}", *ARGUMENTS, *arguments]
        self.code = flags.run(module.main, module.__doc__, argv)
        self.record = json.loads((out_dir / f"{self.name}_run.json").read_text())
        self.text = "\n".join(self.record["lines"])
        self.events = list(records.read(out_dir / f"{self.name}.jsonl"))

    def of(self, event):
        return [record for record in self.events if record["event"] == event]


@pytest.fixture
def inject(monkeypatch):
    """A fault of this test alone, by its flag."""

    def add(file, old, new):
        fault = Fault("mine", "", patch(file, old, new), found_at=(0, "embed"))
        monkeypatch.setitem(faults.FAULTS, "mine", fault)
        return "--inject_fault=mine"

    return add


def test_every_length_and_cut_is_the_same_run(tmp_path):
    run = Run(equivalence, tmp_path)
    assert run.code == flags.EXIT_PASS
    kept = run.of("law")
    assert [one["n"] for one in kept if one["kind"] == "length"] == [2, 3, 4]
    assert {one["status"] for one in kept} == {"exact"} and len(kept) > 4
    assert "kernels of prefill alone: gemm_valu_q4_k" in run.text
    assert run.record["command"].startswith("python -m experiments.equivalence --prompt=p0_short")


def test_a_row_that_only_batches_lose_is_found_in_prefill(inject, tmp_path):
    """Activations of the last row of a batch are never computed."""
    old, new = 'at["ffn.act"], T * self.config.F)', 'at["ffn.act"], (T - (T > 1)) * self.config.F)'
    run = Run(equivalence, tmp_path, inject("hip_engine.forward", old, new))
    assert run.code == flags.EXIT_FAIL
    assert "p0_short: the law breaks first at n = 2: logits differ by" in run.text
    assert "fed 2: first divergence: ffn.act of layer 0, position 1" in run.text
    assert "fed token by token: no op of the judged layers is to blame" in run.text


def test_chunks_that_forget_their_place_are_found_where_lengths_are_clean(inject, tmp_path):
    """GRETA's L13 in spirit: every chunk begins at position 0 of the cache."""
    old, new = "Row(sequence, token, first + i)", "Row(sequence, token, i)"
    run = Run(equivalence, tmp_path, inject("hip_engine.engine", old, new))
    assert run.code == flags.EXIT_FAIL
    broken = [one["kind"] for one in run.of("law") if one["status"] != "exact"]
    assert broken and "length" not in broken
    assert "the law breaks first at chunks of 2" in run.text


def test_a_prefill_that_is_decode_in_disguise_is_vacuous(inject, tmp_path):
    old, new = "len(steps) + self._options.max_rows]", "len(steps) + 1]"
    run = Run(equivalence, tmp_path, inject("hip_engine.engine", old, new))
    assert run.code == flags.EXIT_INCONCLUSIVE
    assert "vacuous: prefill ran no kernel that decode does not run" in run.text


def test_decode_is_accepted(tmp_path):
    run = Run(b3_19, tmp_path)
    assert run.code == flags.EXIT_PASS
    assert [one["n"] for one in run.of("law")] == [2, 3, 4]
    assert "LM head: 4096 logits at each of 4 tokens, worst 0." in run.text
    choices = run.of("choice")
    assert len(choices) == 4
    assert all(one["top1"] == one["top1_fp64"] for one in choices)


def test_a_wrong_argmax_is_no_acceptance(inject, tmp_path):
    """The device looks for the largest logit among the first alone."""
    old, new = 'at["step.top1"], config.V, T)', 'at["step.top1"], 1, T)'
    run = Run(b3_19, tmp_path, inject("hip_engine.forward", old, new))
    assert run.code == flags.EXIT_FAIL
    assert "the device chose 0, the largest of its logits is" in run.text


def test_a_wrong_lm_head_is_found_over_the_vocabulary(inject, tmp_path):
    old = 'self._project("final.norm", {output: "logits"}'
    new = 'self._project("resid.out", {output: "logits"}'
    run = Run(b3_19, tmp_path, inject("hip_engine.forward", old, new))
    assert run.code == flags.EXIT_FAIL
    assert "LM head, position" in run.text and "structural" in run.text


@pytest.mark.parametrize("tokens, last", [(2, 2), (33, 33), (70, 70), (200, 200)])
def test_lengths_are_all_short_ones_and_those_at_boundaries(tokens, last):
    found = law.lengths(tokens)
    assert found[-1] == last and found == sorted(set(found))
    assert set(range(2, min(tokens, 34) + 1)) <= set(found)
    assert {63, 64, 65} <= set(found) or tokens < 65


def test_every_cut_is_the_whole_prompt():
    for _, chunks in law.cuts(41, 7):
        assert sum(chunks) == 41 and min(chunks) >= 1
    assert len(list(law.cuts(41, 7))) == len(law.CHUNKS) + 1
