"""The benchmark on tiny shapes: workers answer, failures are told, tables hold the numbers."""

import pytest

from experiments import bench_oracle
from experiments.bench import ours, plan, tables
from experiments.bench.process import WorkerFailed, ask
from greta_jax.gguf import synthetic

QUESTION = {"precision": "fp64", "tokens": [19], "device": "cpu", "resident": [False, True]}


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.gguf"
    synthetic.write(path, synthetic.SHAPES["small"], report=None)
    return str(path)


def test_a_pass_is_bit_equal_and_streamed_is_resident(small, monkeypatch):
    monkeypatch.setattr(ours.flags, "configure_jax", lambda device: None)
    answer = ours.measure(QUESTION | {"model": small, "rates": False, "products": False})
    streamed, resident = answer["passes"]
    assert streamed["bit_equal"] and resident["bit_equal"]
    assert streamed["digest"] == resident["digest"]
    assert len(streamed["again"]["layer_s"]) == synthetic.SHAPES["small"].layers


def test_a_tapped_pass_is_measured_beside_its_products(small, monkeypatch):
    made = []
    once = ours._chunked_product

    def counted(*question):
        seconds = once(*question)
        return lambda: made.append(question[2:]) or seconds()

    monkeypatch.setattr(ours, "_chunked_product", counted)
    model = ours.oracle({"model": small}, "float64", False)
    found = ours._tapped(model, "float64", ours.token_ids(model, 19), [0, 2])
    assert found["tapped_s"] > 0 and found["beside_s"] > 0
    assert made == ours.matrices(model), "every product once, in the order of the pass"
    ours._OPEN.clear()


def test_the_counted_products_are_those_of_the_shape(small):
    model = ours.oracle({"model": small}, "float64", False)
    per_layer = 2 * 256 * 256 + 2 * 128 * 256 + 3 * 512 * 256
    assert ours.product_flop(model, 5) == 2 * 5 * (3 * per_layer + 320 * 256)
    ours._OPEN.clear()


def test_a_worker_that_fails_says_why(tmp_path):
    with pytest.raises(WorkerFailed, match="no_such_worker"):
        ask("no_such_worker", {}, str(tmp_path))


def test_a_failed_measurement_is_reported_and_not_fatal(tmp_path, monkeypatch, capsys):
    def refuse(worker, question, cache):
        raise WorkerFailed(f"{worker}: out of memory")

    monkeypatch.setattr(plan, "ask", refuse)
    asked = plan.Plan("gpu", "m", "l", "small", (5,), ("fp64",), ("pass", "torch", "judge"))
    found = plan.results(asked, tables.progress)
    assert len(found) == 5 and all("out of memory" in a["failed"] for a in found.values())
    assert "out of memory" in capsys.readouterr().out
    assert tables.text(found) == ""


def test_a_judge_that_found_nothing_is_a_measurement(monkeypatch):
    """Its list of what was above the floor is empty, which is no failed measurement."""
    judged = {"statuses": {"exact": 3}, "worst": 0.5, "where": "0 attn.q", "unclean": []}
    same = {"digest": "d", "weights": "w"}
    answers = iter([same, same, judged | {"weights": "w"}])
    monkeypatch.setattr(plan, "ask", lambda *_: next(answers))
    asked = plan.Plan("gpu", "m", "l", "small", (5,), ("fp64",), ("judge",), devices=2)
    text = tables.text(plan.results(asked, tables.progress))
    assert "worst error 0.5 x its floor at 0 attn.q" in text


def test_more_devices_than_there_are_is_an_error(small):
    with pytest.raises(ValueError, match="JAX sees"):
        ours.oracle({"model": small, "devices": 64}, "float64", False)


def test_ratios_are_theirs_over_ours():
    ours_answer = {
        "total_s": 2.0,
        "rss_bytes": 2**30,
        "passes": [{"again": {"total_s": 0.5}}],
    }
    theirs = {"total_s": 8.0, "rss_bytes": 3 * 2**30, "again_s": 1.0}
    found = {"1b fp64 ours cold": ours_answer, "1b fp64 transformers cold": theirs}
    *_, row = tables.text(found).splitlines()
    assert row.split()[-3:] == ["4.00", "3.00", "2.00"]


def test_bad_flags_are_refused_in_one_line(capsys):
    assert bench_oracle.main(["bench_oracle", "--device=tpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--device=tpu" in line and "cpu|gpu" in line


def test_help_has_examples_and_flags(capsys):
    assert bench_oracle.main(["bench_oracle", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Examples:" in shown and "--shape" in shown
