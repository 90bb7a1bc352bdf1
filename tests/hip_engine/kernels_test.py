import numpy as np
import pytest

from hip_engine import kernels
from hip_engine.arguments import KV_VIEW, record
from hip_engine.kv_types import KV_TYPES
from hip_engine.launcher import ATTENTION_CHUNK
from tests.hip_engine import reference
from tests.hip_engine.bench import Bench


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


@pytest.mark.parametrize("H", [64, 80, 256])
@pytest.mark.parametrize("chunks", [1, 7, 65, 512, 1025])
def test_the_merge_of_any_number_of_chunks_agrees_with_fp64(bench, chunks, H):
    N, spare = 3, 2
    max_NC, sum_NC, out_NCH = (
        random(N, chunks + spare, *more, seed=i) for i, more in enumerate([(), (), (H,)])
    )
    sum_NC = np.abs(sum_NC) + 1
    for partial in (max_NC, sum_NC, out_NCH):
        partial[:, chunks:] = np.nan  # of no live chunk
    max_NC[1, 0] = -np.inf if chunks > 1 else 0  # an empty partial
    position = np.array([chunks * ATTENTION_CHUNK - 1], np.int32)
    with bench.scope():
        y = bench.output(4 * N * H)
        partials = tuple(bench.put(partial) for partial in (max_NC, sum_NC, out_NCH))
        counts = N, H, chunks + spare
        S = (chunks + spare) * ATTENTION_CHUNK
        bench.launch.merge(partials, bench.put(position), y.address, counts, S, window=0, T=1)
        got = bench.result(y, np.float32, (N, H))
    m, s, o = (a[:, :chunks].astype(np.float64) for a in (max_NC, sum_NC, out_NCH))
    distance_NC = m - m.max(1, keepdims=True)
    factor_NC = np.exp(distance_NC)
    sums_N1 = (factor_NC * s).sum(1, keepdims=True)
    ref = np.einsum("NC,NCH->NH", factor_NC, o) / sums_N1
    spread = np.einsum("NC,NCH->NH", factor_NC, np.abs(o)) / sums_N1
    # An exponential of a rounded difference, twice; sums of that many terms, twice; a division.
    furthest = np.abs(distance_NC[np.isfinite(distance_NC)]).max()
    exponential = 2 * reference.EXP_ULPS * reference.U + np.expm1(reference.U * furthest)
    bound = 2 * (exponential + reference.gamma(chunks + 8)) * spread
    reference.assert_within(ref, got, bound)


@pytest.mark.parametrize("name", KV_TYPES)
def test_kv_append_rounds_to_nearest_even_and_touches_the_slots_of_its_rows(device, name):
    kind, K, H, J, pages = KV_TYPES[name], 3, 64, 16, 5
    bench = Bench(device, kernels.build(instance=kernels.Instance(H, kind.symbol)))
    positions, sequences = np.array([4, 17], np.int32), np.array([1, 0], np.int32)
    table_BP = np.array([[3, 1], [0, 2]], np.int32)
    k, v = random(2, K, H) * 100, random(2, K, H, seed=1)
    k[0, 0, :8] = [1 + 2.0**-11, 1 + 3 * 2.0**-11, 65520, 2.0**-25, 1 + 2.0**-8, 239, 1e30, -1e30]
    scales = np.array([[1, 2, 4], [0.5, 1, 2]], np.float32)
    fill = np.full((pages, K, J, H), 7, kind.raw)
    with bench.scope():
        pools = bench.output(fill.nbytes), bench.output(fill.nbytes)
        for buffer in pools:
            bench.device.write(buffer, fill)
        view = record(
            KV_VIEW,
            k_PKJH=pools[0].address,
            v_PKJH=pools[1].address,
            table_BP=bench.put(table_BP),
            scales_2K=bench.put(scales),
            page_stride=K * J * H,
            head_stride=J * H,
            log2_page=4,
            table_stride=2,
        )
        rows = bench.put(positions), bench.put(sequences)
        bench.launch.kv_append(kind.symbol, bench.put(k), bench.put(v), rows, view, (K, H), T=2)
        for new, buffer, scale_K in zip((k, v), pools, scales, strict=True):
            ref = fill.copy()
            scaled = new / scale_K[:, None] if kind.scaled else new
            ref[0, :, 4], ref[1, :, 1] = _nearest(kind, scaled)
            np.testing.assert_array_equal(bench.result(buffer, kind.raw, fill.shape), ref)


def _nearest(kind, x):
    """The raw code of the nearest number of a type, ties to even codes; fp8 saturates."""
    if kind.name in ("float32", "float16"):
        with np.errstate(over="ignore"):
            return x.astype(kind.raw)
    codes = np.arange(1 << 8 * kind.raw.itemsize).astype(kind.raw)
    with np.errstate(invalid="ignore"):  # signalling NaNs among all codes
        values = kind.widen(codes).astype(np.float64)
    keep = np.isfinite(values)
    codes, values = codes[keep], values[keep]
    order = np.argsort(values, kind="stable")
    codes, values = codes[order], values[order]
    above = np.clip(np.searchsorted(values, x), 1, len(values) - 1)
    low, high = values[above - 1], values[above]
    up = (x - low > high - x) | ((x - low == high - x) & (codes[above] % 2 == 0))
    return np.where(up, codes[above], codes[above - 1])


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
