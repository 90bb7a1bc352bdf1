"""Bounds of a declared order: no evaluation in it exceeds them, ordinary ones come near."""

from dataclasses import replace

import numpy as np
import pytest

from experiments import bound_tightness
from experiments.bench import tightness
from experiments.bench.tightness import KINDS, Case, Tightness, draw, lines, measure, ratios
from greta_jax.bounds import bound
from greta_jax.errors import PrecisionError, SiteError
from greta_jax.model import Oracle
from greta_jax.precision import Policy, stored
from tests.tiny_gguf import FEATURES, write_architecture

TOKENS = 16
QUICK = ("gemma2", "granite", "qwen3moe")
CASE = Case("float32", "sequential")
CASES = [
    Case(dtype, order)
    for dtype in ("float32", "bfloat16")
    for order in ("sequential", "pairwise", "split:3")
]


def check(oracle: Oracle, case: Case, tokens: int, seed: int = 0) -> None:
    """Never above 1; on ordinary inputs within a factor of 100 of the largest error."""
    for site, found in lines(oracle, case, tokens, seed):
        assert not found.exceeded and not found.loose, (site, found)


def test_no_evaluation_exceeds_its_bound_and_ordinary_ones_come_near(tiny_path):
    check(Oracle.open(tiny_path, Policy.fp64()), CASE, TOKENS)


@pytest.mark.parametrize("site", ["attn.q", "attn.out"])
def test_matrix_cores_stay_within_theirs(tiny_path, site):
    oracle, case = Oracle.open(tiny_path, Policy.fp64()), Case("float32", "mfma:f16")
    found = measure(oracle, site, case, TOKENS)
    assert not found.exceeded and not found.loose, found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f16", "bf16", "xf32"])
def test_every_product_of_a_matrix_core_stays_within_its_bound(tiny_path, kind):
    check(Oracle.open(tiny_path, Policy.fp64()), Case("float32", f"mfma:{kind}"), TOKENS)


@pytest.mark.parametrize("case", [Case("bfloat16", "sequential"), Case("float32", "pairwise")])
@pytest.mark.parametrize("site", ["attn.probs", "attn.out"])
def test_attention_over_a_thousand_slots_comes_near_too(tiny_path, site, case):
    """In bf16 a sum of a thousand weights stops growing: n*u is 4."""
    found = measure(Oracle.open(tiny_path, Policy.fp64()), site, case, 2, slots=1024)
    assert not found.exceeded and not found.loose, found


def test_an_error_that_all_weights_share_acts_on_the_result_and_not_on_every_value(tiny_path):
    """A sum of weights that is off by as much moves attn.out, which is small, and not |v|."""
    oracle = Oracle.open(tiny_path, Policy.fp64())
    rng = np.random.default_rng(0)
    inputs = draw(oracle, "attn.out", "ordinary", rng, 1, "float32", 2048)
    inputs["attn.q_rope"] *= 0
    one_sided = inputs | {"kv.v": inputs["kv.v"] * 0 + 1}
    declared = CASE.declared(with_weights=False)
    cancelling = bound(oracle, "attn.out", 0, inputs, declared)
    assert np.all(cancelling < bound(oracle, "attn.out", 0, one_sided, declared) / 8)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_thousands_of_inputs_do_not_exceed_them_either(quantised_path, case, seed):
    check(Oracle.open(quantised_path, Policy.fp64()), case, 96, seed)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in FEATURES],
)
def test_ops_of_other_architectures_stay_within_theirs(tmp_path, name):
    oracle = Oracle.open(write_architecture(tmp_path / "m.gguf", name), Policy.fp64())
    check(oracle, CASE, TOKENS)


def test_an_evaluation_in_bf16_exceeds_the_bound_of_fp32(tiny_path):
    """The gate can fail."""
    oracle = Oracle.open(tiny_path, Policy.fp64())
    declared = Case("float32", "sequential").declared(with_weights=False)
    for site in ("attn.norm", "attn.q", "attn.q_rope", "attn.out", "ffn.act", "resid.mid"):
        inputs = draw(oracle, site, KINDS[0], np.random.default_rng(0), TOKENS, "bfloat16")
        (ratio,) = ratios(oracle, site, inputs, Case("bfloat16", "sequential"), declared)
        assert ratio > 1, (site, ratio)


def test_the_bound_follows_the_partial_sums(tiny_path):
    """Terms that cancel one by one, and the same with all positive ones first."""
    oracle = Oracle.open(tiny_path, Policy.fp64())
    weight_D = np.asarray(oracle.weights.load("q_NHD", 0), np.float64).reshape(-1, 24)[0]
    signs = {"alternating": np.tile([1, -1], 12), "grouped": np.repeat([1, -1], 12)}
    running, unordered = {}, {}
    for name, sign_D in signs.items():
        inputs = {"attn.norm": (sign_D / weight_D)[None]}
        declared = CASE.declared(with_weights=True)
        running[name] = bound(oracle, "attn.q", 0, inputs, declared)[0, 0, 0]
        unordered[name] = bound(oracle, "attn.q", 0, inputs, replace(declared, order=None))[0, 0, 0]
    assert running["grouped"] > 1.5 * running["alternating"]
    np.testing.assert_allclose(unordered["grouped"], unordered["alternating"], rtol=1e-6)


def test_cancelling_partial_sums_narrow_the_bound(quantised_path):
    oracle = Oracle.open(quantised_path, Policy.fp64())
    inputs = draw(oracle, "ffn.down", "ordinary", np.random.default_rng(0), 4, "float32")
    running = CASE.declared(with_weights=True)
    followed, any_order, likely = (
        bound(oracle, "ffn.down", 0, inputs, declared)
        for declared in (running, replace(running, order=None), replace(running, failure=1e-9))
    )
    assert np.all(followed < any_order / 4) and np.median(likely / followed) < 0.6


@pytest.mark.parametrize("store", ["float16", "float8_e4m3fnuz", "float8_e5m2fnuz", "int8"])
def test_cache_formats_stay_within_the_bound_of_their_storage(tiny_path, store):
    oracle = Oracle.open(tiny_path, Policy.fp64())
    for kind in KINDS:
        rng = np.random.default_rng(1)
        x = draw(oracle, "kv.k", kind, rng, TOKENS, "float32")["attn.k_rope"] * 60
        declared = {"store": store, "accumulate": "float32"}
        limit = bound(oracle, "kv.k", 0, {"attn.k_rope": x}, declared)
        error = np.abs(np.asarray(stored(x.astype(np.float32), store), np.float64) - x)
        assert np.all(error <= limit), kind
    assert (error / limit).max() > 0.3


def test_a_sum_that_may_overflow_has_no_bound(tiny_path):
    oracle = Oracle.open(tiny_path, Policy.fp64())
    inputs = {"attn.norm": np.full((1, 24), 3e38)}
    limit = bound(oracle, "attn.q", 0, inputs, Case("float32", "sequential").declared(True))
    assert np.isinf(limit).any()


def test_an_input_that_is_missing_is_named(tmp_path):
    oracle = Oracle.open(write_architecture(tmp_path / "m.gguf", "qwen3"), Policy.fp64())
    inputs = {"attn.q": np.ones((1, 6, 10)), "positions": np.arange(1)}
    with pytest.raises(SiteError, match="bound of attn.q_rope needs the input attn.q_norm"):
        bound(oracle, "attn.q_rope", 0, inputs, {})


@pytest.mark.parametrize("order", ["mfma:int8", "native", "backwards"])
def test_an_order_without_a_bound_is_refused(order):
    with pytest.raises(PrecisionError):
        Case("float32", order).declared(True)


def run_command(monkeypatch, *argv) -> int:
    monkeypatch.setattr(bound_tightness.flags, "configure_jax", lambda: None)
    command = bound_tightness
    return command.flags.run(command.main, command.__doc__, ["", *argv], command.FLAGS)


@pytest.mark.slow
def test_the_command_prints_a_table_and_passes(tiny_path, capsys, monkeypatch):
    done = run_command(monkeypatch, f"--model={tiny_path}", "--tokens=2")
    text = capsys.readouterr().out
    assert done == 0 and "attn.out, S = 4096" in text and "bfloat16" in text and "mfma" in text


@pytest.mark.parametrize(
    "found, said",
    [
        (Tightness(0.5, 0.1, 0.5, 1.25), "logits (float32, sequential): a bound is exceeded"),
        (Tightness(0.004, 0.1, 0.5, 0.5), "logits (float32, sequential): 1/250 of its running"),
    ],
)
def test_the_command_fails_and_names_the_op(tiny_path, capsys, monkeypatch, found, said):
    monkeypatch.setattr(tightness, "lines", lambda *_: iter([("logits", found)]))
    monkeypatch.setattr(tightness, "attention_lines", lambda *_: iter(()))
    assert run_command(monkeypatch, f"--model={tiny_path}") == 1
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("order", [None, "sequential"])
def test_a_nan_in_one_row_leaves_the_bounds_of_the_others(tiny_path, order):
    oracle = Oracle.open(tiny_path, Policy.fp64())
    inputs = draw(oracle, "attn.proj", KINDS[0], np.random.default_rng(0), 4, "float32")
    inputs["attn.out"][2, 1, 3] = np.nan
    declared = replace(CASE.declared(with_weights=True), order=order)
    limit_TD = bound(oracle, "attn.proj", 0, inputs, declared)
    assert np.isfinite(limit_TD[[0, 1, 3]]).all()
