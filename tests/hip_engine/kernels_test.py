import numpy as np
import pytest

from tests.hip_engine import reference


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("D", [1, 31, 256, 1031])
def test_rms_norm_agrees_with_fp64(bench, D):
    tokens, eps = 2, 1e-5
    x, weight = random(tokens, D), random(D, seed=1)
    with bench.scope():
        y = bench.output(x.nbytes)
        bench.launch.rms_norm(bench.put(x), bench.put(weight), y.address, D, eps, tokens)
        got = bench.result(y, np.float32, x.shape)
    ref, bound = reference.rms_norm(x, weight, np.float64(np.float32(eps)))
    reference.assert_within(ref, got, bound)


@pytest.mark.parametrize(("N", "K", "H"), [(8, 2, 64), (7, 3, 128), (5, 1, 10)])
def test_rope_turns_interleaved_pairs_by_the_position_of_each_token(bench, N, K, H):
    q, k, positions = random(2, N, H), random(2, K, H, seed=1), np.array([0, 801], np.int32)
    frequencies = 500000.0 ** (-np.arange(H // 2) * 2 / H)
    angles = np.arange(802)[:, None] * frequencies
    table = np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
    with bench.scope():
        outputs = bench.output(q.nbytes), bench.output(k.nbytes)
        addresses = tuple(out.address for out in outputs)
        inputs = [bench.put(a) for a in (q, k, table, positions)]
        bench.launch.rope(*inputs, addresses, (N, K, H), T=2)
        for x, out in zip((q, k), outputs, strict=True):
            got = bench.result(out, np.float32, x.shape)
            ref, bound = reference.rope(x, table[positions, :, 0], table[positions, :, 1])
            reference.assert_within(ref, got, bound)
            np.testing.assert_array_equal(got[0], x[0])


@pytest.mark.parametrize(("cache", "dtype"), [("f16", np.float16), ("f32", np.float32)])
def test_kv_append_rounds_to_nearest_even_and_touches_one_slot(bench, cache, dtype):
    K, H, positions, at = 3, 64, 9, 4
    k, v = random(1, K, H) * 100, random(1, K, H, seed=1)
    k[0, 0, :4] = [1 + 2.0**-11, 1 + 3 * 2.0**-11, 65504 + 16, 2.0**-25]
    slab = np.full((K, positions, H), 7, dtype)
    with bench.scope():
        slabs = bench.output(slab.nbytes), bench.output(slab.nbytes)
        for buffer in slabs:
            bench.device.write(buffer, slab)
        position = bench.put(np.array([at], np.int32))
        addresses = [buffer.address for buffer in slabs]
        bench.launch.kv_append(
            cache, bench.put(k), bench.put(v), position, addresses, positions * H, (K, H), T=1
        )
        for new, buffer in zip((k, v), slabs, strict=True):
            ref = slab.copy()
            with np.errstate(over="ignore"):
                ref[:, at] = new[0].astype(dtype)
            np.testing.assert_array_equal(bench.result(buffer, dtype, slab.shape), ref)


@pytest.mark.parametrize("count", [1, 3, 1024, 1031])
def test_swiglu_agrees_with_fp64(bench, count):
    gate, up = random(count) * 20, random(count, seed=1)
    extremes = np.array([0, -0.0, 88, -88, 104, -104, 200, -200, 1e-30, -1e-30], np.float32)
    gate[: extremes.size] = extremes[:count]
    with bench.scope():
        y = bench.output(gate.nbytes)
        bench.launch.swiglu(bench.put(gate), bench.put(up), y.address, count)
        got = bench.result(y, np.float32, gate.shape)
    ref, bound = reference.swiglu(gate, up)
    reference.assert_within(ref, got, bound)


def test_swiglu_keeps_nan_and_infinity(bench):
    gate, up = np.array([np.nan, np.inf, 1], np.float32), np.array([1, 2, np.nan], np.float32)
    with bench.scope():
        y = bench.output(gate.nbytes)
        bench.launch.swiglu(bench.put(gate), bench.put(up), y.address, 3)
        got = bench.result(y, np.float32, gate.shape)
    np.testing.assert_array_equal(got, [np.nan, np.inf, np.nan])


@pytest.mark.parametrize("count", [1, 3, 1024, 1031])
def test_residual_add_is_one_rounding(bench, count):
    a, b = random(count), random(count, seed=1)
    with bench.scope():
        y = bench.output(a.nbytes)
        bench.launch.residual_add(bench.put(a), bench.put(b), y.address, count)
        np.testing.assert_array_equal(bench.result(y, np.float32, a.shape), a + b)


ARGMAX_CASES = {
    "one": ([3.0], 0),
    "tie_takes_the_lowest_index": ([1, 5, 2, 5, 5], 1),
    "minus_zero_ties_with_zero": ([-1, -0.0, 0.0], 1),
    "all_minus_infinity": ([-np.inf, -np.inf], 0),
    "infinity": ([1, np.inf, 3], 1),
    "first_nan_wins": ([1, np.inf, np.nan, -np.nan], 2),
    "negative": ([-3, -2, -4], 1),
}


@pytest.mark.parametrize("case", ARGMAX_CASES)
def test_argmax_of_hard_rows(bench, case):
    row, ref = ARGMAX_CASES[case]
    assert _argmax(bench, np.array([row], np.float32)) == [ref]


@pytest.mark.parametrize("V", [63, 1024, 4097])
def test_argmax_finds_the_maximum_wherever_it_is(bench, V):
    logits = random(4, V)
    logits[range(4), [0, V - 1, V // 2, V // 3]] = 10
    logits[0, V - 1] = 10
    assert _argmax(bench, logits) == [0, V - 1, V // 2, V // 3]


def _argmax(bench, logits):
    with bench.scope():
        top1 = bench.output(4 * len(logits))
        bench.launch.argmax(bench.put(logits), top1.address, logits.shape[1], len(logits))
        return bench.result(top1, np.int32, (len(logits),)).tolist()
