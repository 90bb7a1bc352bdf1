import numpy as np
import pytest

from hip_engine import launcher
from hip_engine.launcher import AttentionShape, attention_symbol
from tests.hip_engine import reference

# cache, N, K, H, S: one slot, tile and chunk edges, G of 1, 3, 4 and 7, primes.
CASES = [
    ("f16", 8, 2, 64, 1),
    ("f16", 8, 2, 64, 63),
    ("f16", 6, 2, 64, 257),
    ("f16", 5, 5, 64, 256),
    ("f16", 14, 2, 128, 131),
    ("f32", 12, 4, 64, 65),
    ("f32", 7, 1, 128, 64),
    ("f32", 3, 3, 128, 521),
    ("f16", 8, 2, 64, 1021),
]
DTYPES = {"f16": np.float16, "f32": np.float32}


class Problem:
    """Random q and a cache, [K][position][H], whose slots beyond S hold NaN."""

    def __init__(self, cache, N, K, H, S, seed=0):
        rng = np.random.default_rng([seed, N, K, H, S])
        self.cache, self.S = cache, S
        positions = S + 70
        self.shape = AttentionShape(N, K, H, positions * H, -(-positions // 256))
        self.q_NH = rng.standard_normal((N, H)).astype(np.float32) * np.float32(2)
        k_SKH, v_SKH = rng.standard_normal((2, S, K, H)).astype(DTYPES[cache])
        self.k_SKH, self.v_SKH = k_SKH, v_SKH
        self.slabs = np.full((2, K, positions, H), np.nan, DTYPES[cache])
        self.slabs[:, :, :S] = np.stack([k_SKH, v_SKH]).transpose(0, 2, 1, 3)

    def run(self, bench):
        shape, floats = self.shape, 4 * self.shape.N * self.shape.max_chunks
        symbol = attention_symbol(bench.launch.kernels, self.cache, shape.H, shape.N // shape.K)
        with bench.scope():
            partials = [bench.output(n) for n in (floats, floats, floats * shape.H)]
            y = bench.output(4 * shape.N * shape.H)
            slabs = [bench.put(slab) for slab in self.slabs]
            position = bench.put(np.array([self.S - 1], np.int32))
            bench.launch.attention(
                symbol,
                bench.put(self.q_NH),
                slabs,
                position,
                [p.address for p in partials],
                y.address,
                self.S,
                shape,
            )
            return bench.result(y, np.float32, (shape.N, shape.H))


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c)))
def test_attention_agrees_with_fp64_and_never_sees_slots_beyond_the_live_ones(bench, case):
    problem = Problem(*case)
    ref, bound = reference.attention(problem.q_NH, problem.k_SKH, problem.v_SKH)
    reference.assert_within(ref, problem.run(bench), bound)


def test_one_live_slot_returns_its_value(bench):
    problem = Problem("f16", 8, 2, 64, 1)
    ref = np.repeat(problem.v_SKH[0], 4, axis=0).astype(np.float32)
    np.testing.assert_array_equal(problem.run(bench), ref)


def test_the_number_of_workgroups_does_not_change_a_bit(bench, monkeypatch):
    problem = Problem("f16", 8, 2, 64, 1021)
    results = []
    for workgroups in (1, 3, 1024):
        monkeypatch.setattr(launcher, "MAX_CHUNK_WORKGROUPS", workgroups)
        results.append(problem.run(bench))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("slot", [0, 200, 299])
@pytest.mark.parametrize("which", [0, 1], ids=["k", "v"])
def test_nan_in_a_live_slot_reaches_the_heads_that_read_it_and_no_other(bench, which, slot):
    problem = Problem("f16", 8, 2, 64, 300)
    problem.slabs[which, 1, slot, 5] = np.nan
    got = problem.run(bench)
    assert np.isfinite(got[:4]).all()
    where = np.isnan(got[4:])
    assert where.all() if which == 0 else where[:, 5].all()


def test_scores_far_apart_do_not_overflow(bench):
    problem = Problem("f32", 8, 2, 64, 130)
    problem.q_NH *= np.float32(300)
    ref, bound = reference.attention(problem.q_NH, problem.k_SKH, problem.v_SKH)
    reference.assert_within(ref, problem.run(bench), bound)
