"""What is said of an error that no known mistake is: its kind, its size, and what to run next."""

import re
from dataclasses import replace

import numpy as np
import pytest

from experiments.align import compare, sites, trace, verdict
from experiments.arithmetic import OracleArithmetic
from experiments.explain import explain
from experiments.reference import rows_of
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from greta_jax.replay import replay
from greta_jax.taps import Taps

T, LAYERS = 40, (0, 1)
FP32 = replace(Policy.fp32(), name="engine")
PRECISION = {site: {"store": "float32", "accumulate": "float32"} for site in sites.SITES}


@pytest.fixture(scope="module")
def oracle(quantised_path):
    return Oracle.open(quantised_path, Policy.fp64())


def traced(oracle, policy):
    ids = np.random.default_rng(5).integers(0, 131, T)
    taps = oracle.with_policy(policy).prefill(ids, Taps.everything()).taps
    run = trace.Run("model", "prompt", tuple(int(i) for i in ids))
    return trace.Trace(run, {place: rows_of(place[1], rows) for place, rows in taps.items()})


@pytest.fixture(scope="module")
def ref(oracle):
    return traced(oracle, Policy.fp64())


def explained(oracle, ref, got, chosen):
    dims = oracle.config.dimensions
    ops = OracleArithmetic(oracle, dims, PRECISION)
    declared = compare.Declared(dims, dict.fromkeys(sites.SITES, "float32"))
    judged = compare.judge_all(ref, got, ops.as_arithmetic(), declared, LAYERS, (chosen,))
    found = list(judged)
    return found[0].status, explain(ops, got, found)


def test_sums_in_fp16_are_numeric_and_lead_to_a_precision_study(oracle, ref):
    """GRETA's G3, in an order of sums that is not the hypothesis's own."""
    half = {"score": "float16", "softmax": "float16", "pv": "float16"}
    got = traced(oracle, replace(FP32, order="pairwise", **half))
    status, found = explained(oracle, ref, got, "attn.out")
    assert status is verdict.Status.ABOVE_FLOOR
    sentence = found.naming.sentence()
    assert sentence.startswith("none of the ")
    step = "experiments.precision_ablation --factors=compute=fp16@attn.out --compare=engine"
    assert f"arithmetic coarser than declared would err so: python -m {step}" in sentence
    sizes = re.search(r"rms error (\S+); sums in fp16, one after the other: (\S+)\)", sentence)
    own, other = map(float, sizes.groups())
    assert 0.1 < own / other < 10


def test_a_structural_error_without_a_name_leads_elsewhere(oracle, ref):
    got = traced(oracle, FP32)
    rows = np.array(got.rows(0, "attn.out"))
    rows[:, 3] += np.random.default_rng(1).standard_normal(rows[:, 3].shape)
    spoilt = replace(got, rows_by_place=got.rows_by_place | {(0, "attn.out"): rows})
    status, found = explained(oracle, ref, spoilt, "attn.out")
    assert status is verdict.Status.STRUCTURAL
    assert "next: the same prompt on another --route" in found.naming.sentence()


def test_two_mistakes_that_agree_are_listed_with_the_layer_that_separates_them(oracle, ref):
    """In layer 1 the cache of layer 0 is also that of the layer before."""
    got = traced(oracle, FP32)
    slabs = {site: got.rows(0, site)[-1] for site in ("kv.k", "kv.v")}
    inputs = {"attn.q_rope": np.asarray(got.rows(1, "attn.q_rope")), **slabs}
    wrong = replay(oracle.with_policy(Policy.fp32()), "attn.out", 1, inputs)
    spoilt = replace(got, rows_by_place=got.rows_by_place | {(1, "attn.out"): wrong})
    _, found = explained(oracle, ref, spoilt, "attn.out")
    both = ("kv_base_of_layer_0", "kv_base_of_previous_layer")
    assert not found.naming.named and set(found.naming.candidates) == set(both)
    assert found.naming.sentence().startswith("cannot be told apart: ")
    assert "kv_base_of_layer_0 shows where layer 0 is judged too, from layer 2 on" in (
        found.naming.sentence()
    )


def test_an_error_is_named_by_the_tokens_before_its_inputs_are_not_finite(oracle, ref):
    got = traced(oracle, FP32)
    rows = {(0, site): np.array(got.rows(0, site)) for site in ("attn.q", "attn.q_rope")}
    positions = {"positions": np.arange(T) + 1}
    fp32 = oracle.with_policy(Policy.fp32())
    wrong = replay(fp32, "attn.q_rope", 0, {"attn.q": rows[0, "attn.q"]} | positions)
    rows[0, "attn.q_rope"] = np.array(wrong)
    for array in rows.values():
        array[T // 2 :] = np.nan
    spoilt = replace(got, rows_by_place=got.rows_by_place | rows)
    _, found = explained(oracle, ref, spoilt, "attn.q_rope")
    assert found.naming.named == "position_plus_one"
