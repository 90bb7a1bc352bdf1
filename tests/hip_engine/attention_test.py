"""Decode attention of every route, head size and cache type, on rows of several sequences."""

import functools
from typing import NamedTuple

import numpy as np
import pytest

from hip_engine import kernels, launcher
from hip_engine.arguments import ATTN_ARGS, KV_VIEW, record
from hip_engine.kv_types import KV_TYPES
from hip_engine.routes import BUILT, Route
from tests.hip_engine import reference
from tests.hip_engine.bench import Bench

# What fp32 numbers become in the cache. Rounding of bf16 and fp8 is tested on kv_append.
NARROW = {
    "float32": lambda x: x,
    "float16": lambda x: x.astype(np.float16),
    "bfloat16": lambda x: (x.view(np.uint32) >> 16).astype(np.uint16),
    # Any code but 0x80, which is NaN, and none so large that one slot takes all the weight.
    "float8_e4m3fnuz": lambda x: (
        np.clip(np.abs(x) * 30, 1, 0x4F).astype(np.uint8) | np.signbit(x) * np.uint8(0x80)
    ),
}
NAN = {"float32": np.nan, "float16": np.nan, "bfloat16": 0x7FFF, "float8_e4m3fnuz": 0x80}


class Case(NamedTuple):
    """`lengths`: live slots of each row's sequence. `page`: 0 for contiguous."""

    dtype: str
    N: int
    K: int
    H: int
    lengths: tuple[int, ...]
    page: int = 0
    window: int = 0
    softcap: float = 0.0


# One slot, tile and chunk edges, G of 1, 3, 4, 5, 7, 8 and 16, primes; N, K and G all different.
CASES = (
    Case("float16", 8, 2, 64, (1,)),
    Case("float16", 8, 2, 64, (63, 257)),
    Case("float16", 6, 2, 64, (256,), page=16),
    Case("float16", 5, 5, 64, (64, 1, 130), page=64),
    Case("float16", 16, 1, 64, (521,), page=256),
    Case("float16", 8, 2, 64, (1021,), window=300),
    Case("float16", 8, 2, 64, (200,), window=64, page=16),
    Case("float16", 8, 2, 64, (131,), softcap=5.0),
    Case("float16", 4, 1, 64, (131072,), page=256),
    Case("float16", 15, 5, 128, (131, 17)),
    Case("float16", 14, 2, 80, (65,), page=16),
    Case("float16", 9, 3, 96, (70,)),
    Case("float16", 32, 2, 256, (67,)),
    Case("float32", 12, 4, 64, (65,)),
    Case("float32", 7, 1, 128, (64, 5), page=64),
    Case("float32", 3, 3, 80, (321,)),
    Case("bfloat16", 8, 2, 64, (131,)),
    Case("bfloat16", 24, 3, 128, (300,), page=256),
    Case("float8_e4m3fnuz", 8, 2, 64, (131, 64)),
    Case("float8_e4m3fnuz", 10, 2, 128, (300,), page=16),
    Case("float8_e4m3fnuz", 4, 1, 256, (65,)),
)


def covering(seed: int) -> tuple[Case, ...]:
    """Every head size with every cache type, and each once with every other choice.

    Twenty draws from the product: every G from 1 to 16, batches of 1 to 64 of different lengths,
    every page size, windows and caps. Lengths of a large batch are short, for time's sake.
    """
    rng = np.random.default_rng(seed)
    pairs = [(H, dtype) for H in (64, 80, 96, 128, 256) for dtype in KV_TYPES]
    columns = {
        "G": np.resize(np.arange(1, 17), len(pairs)),
        "K": np.resize([1, 2, 3, 5, 7], len(pairs)),
        "page": np.resize([0, 16, 64, 256], len(pairs)),
        "window": np.resize([0, 0, 0, 1, 100, 257], len(pairs)),
        "softcap": np.resize([0.0, 0.0, 3.0], len(pairs)),
        "batch": np.resize([1, 2, 5, 64], len(pairs)),
    }
    drawn = {name: rng.permutation(column).tolist() for name, column in columns.items()}
    found = []
    for i, (H, dtype) in enumerate(pairs):
        G, K, page, window, softcap, batch = (drawn[name][i] for name in columns)
        longest = 40 if batch == 64 else 700
        lengths = tuple(rng.integers(1, longest, batch).tolist())
        found.append(Case(dtype, G * K, K, H, lengths, page, window, softcap))
    return tuple(found)


COVERING = covering(seed=3)


def test_the_covering_leaves_no_value_out():
    assert {case.N // case.K for case in COVERING} == set(range(1, 17))
    assert {case.page for case in COVERING} == {0, 16, 64, 256}
    assert {len(case.lengths) for case in COVERING} == {1, 2, 5, 64}
    assert len({(case.H, case.dtype) for case in COVERING}) == 5 * len(KV_TYPES)


@functools.cache
def bench_for(device, H, symbol):
    return Bench(device, kernels.build(instance=kernels.Instance(H, symbol)))


class Problem:
    """Random q and a pool, [page][K][slot][H], in which every slot that is not live holds NaN."""

    def __init__(self, case: Case, seed=0):
        self.case, self.kind = case, KV_TYPES[case.dtype]
        rng = np.random.default_rng([seed, case.N, case.K, case.H, *case.lengths])
        T, K, H = len(case.lengths), case.K, case.H
        longest = max(case.lengths)
        self.J = case.page or longest + 70
        each = -(-longest // self.J)
        pages = T * each + 3
        self.table_BP = rng.permutation(pages)[: T * each].reshape(T, each).astype(np.int32)
        self.q_TNH = (rng.standard_normal((T, case.N, H)) * 2).astype(np.float32)
        self.scales_2K = np.ones((2, K), np.float32)
        if self.kind.scaled:
            self.scales_2K = rng.uniform(0.5, 2, (2, K)).astype(np.float32)
        self.pools = np.full((2, pages, K, self.J, H), NAN[case.dtype], self.kind.raw)
        for row, S in enumerate(case.lengths):
            slots = NARROW[case.dtype](rng.standard_normal((2, S, K, H)).astype(np.float32))
            for s in range(S):
                self.pools[:, self.table_BP[row, s // self.J], :, s % self.J] = slots[:, s]

    def slabs(self, row: int):
        """K and V of the live slots of a row, SKH, as fp32."""
        S = self.case.lengths[row]
        pages = self.table_BP[row, np.arange(S) // self.J]
        raw = self.pools[:, pages, :, np.arange(S) % self.J]
        stored = self.kind.widen(np.ascontiguousarray(raw))
        slabs = np.moveaxis(stored, 1, 0) * self.scales_2K[:, None, :, None]
        first = max(0, S - self.case.window) if self.case.window else 0
        return slabs[:, first:]

    def reference(self, route: Route):
        """fp64 results and bounds, stacked over rows."""
        operands = self.kind.operands if route.matmul == "mfma" else None
        results = [
            reference.attention(q_NH, *self.slabs(row), self.case.softcap, operands)
            for row, q_NH in enumerate(self.q_TNH)
        ]
        return [np.stack(part) for part in zip(*results, strict=True)]

    def run(self, bench, route: Route, addresses=None):
        """Attention of all rows; manual, since fused starts before RoPE and has its own test.

        `addresses`: of K and V pools that are on the device already.
        """
        case = self.case
        T, N, K, H = len(case.lengths), case.N, case.K, case.H
        family = f"attn_{route.kernel}_{route.matmul}_{self.kind.symbol}_h{H}_g"
        tiles = sorted(
            int(s.removeprefix(family)) for s in bench.launch.kernels if s.startswith(family)
        )
        tile = next((t for t in tiles if t >= N // K), tiles[-1])
        chunks = -(-max(case.lengths) // launcher.ATTENTION_CHUNK)
        with bench.scope():
            partials = [bench.output(4 * T * N * chunks * n) for n in (1, 1, H)]
            y = bench.output(4 * T * N * H)
            k, v = addresses or (bench.put(pool) for pool in self.pools)
            args = np.zeros((), ATTN_ARGS)
            args["kv"] = record(
                KV_VIEW,
                k_PKJH=k,
                v_PKJH=v,
                table_BP=bench.put(self.table_BP),
                scales_2K=bench.put(self.scales_2K),
                page_stride=K * self.J * H,
                head_stride=self.J * H,
                log2_page=case.page.bit_length() - 1 if case.page else 31,
                table_stride=self.table_BP.shape[1],
            )
            args["q_TNH"] = bench.put(self.q_TNH)
            args["position_T"] = bench.put(np.array(case.lengths, np.int32) - 1)
            args["sequence_T"] = bench.put(np.arange(T, dtype=np.int32))
            for name, partial in zip(("max_TNC", "sum_TNC", "out_TNCH"), partials, strict=True):
                args[name] = partial.address
            args["N"], args["K"], args["max_chunks"] = N, K, chunks
            args["window"], args["softcap"] = case.window, case.softcap
            args["scale"] = H**-0.5
            bench.launch.attention(f"{family}{tile}", args, max(case.lengths), H, y.address, T)
            return bench.result(y, np.float32, (T, N, H))


ROUTES = [route for route in BUILT if route.kernel == "manual"]
# What the budget of `make test` has room for: every instance is other kernels to translate.
LONG = 4096
QUICK = {("float16", 64), ("float16", 128), ("float32", 64), ("bfloat16", 64)}
QUICK |= {("float8_e4m3fnuz", 64)}


def is_slow(case):
    return max(case.lengths) > LONG or (case.dtype, case.H) not in QUICK


RUNS = [
    pytest.param(case, route, marks=[pytest.mark.slow] * is_slow(case))
    for case in (*CASES, *COVERING)
    for route in ROUTES
    if route.matmul == "valu" or KV_TYPES[case.dtype].operands
]


def name(value):
    if not isinstance(value, Case):
        return str(value)
    lengths = value.lengths if len(value.lengths) < 8 else f"{len(value.lengths)} sequences"
    return "-".join(map(str, value._replace(lengths=lengths)))


@pytest.mark.parametrize(("case", "route"), RUNS, ids=name)
def test_attention_agrees_with_fp64_and_never_sees_slots_beyond_the_live_ones(device, case, route):
    problem = Problem(case)
    bench = bench_for(device, case.H, problem.kind.symbol)
    ref, bound = problem.reference(route)
    reference.assert_within(ref, problem.run(bench, route), bound)


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_one_live_slot_returns_its_value(bench, route):
    problem = Problem(Case("float16", 8, 2, 64, (1,)))
    ref = np.repeat(problem.slabs(0)[1], 4, axis=1)
    np.testing.assert_array_equal(problem.run(bench, route), ref)


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_the_number_of_workgroups_does_not_change_a_bit(bench, monkeypatch, route):
    problem = Problem(Case("float16", 8, 2, 64, (1021, 300)))
    results = []
    for workgroups in (1, 3, 1024):
        monkeypatch.setattr(launcher, "MAX_CHUNK_WORKGROUPS", workgroups)
        results.append(problem.run(bench, route))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("route", ROUTES, ids=str)
@pytest.mark.parametrize("page", [16, 64, 256])
def test_pages_wherever_they_lie_do_not_change_a_bit(bench, route, page):
    case = Case("float16", 6, 2, 64, (300, 67))
    whole = Problem(case)
    paged = Problem(case._replace(page=page))
    for row, S in enumerate(case.lengths):
        for s in range(S):
            slot = whole.pools[:, whole.table_BP[row, 0], :, s]
            paged.pools[:, paged.table_BP[row, s // page], :, s % page] = slot
    paged.q_TNH = whole.q_TNH
    np.testing.assert_array_equal(whole.run(bench, route), paged.run(bench, route))


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_a_row_alone_has_the_bits_it_has_in_a_batch(bench, route):
    together = Problem(Case("float16", 8, 2, 64, (300, 1, 77), page=16))
    batch = together.run(bench, route)
    for row, S in enumerate(together.case.lengths):
        alone = Problem(together.case._replace(lengths=(S,)))
        alone.pools, alone.q_TNH = together.pools, together.q_TNH[row : row + 1]
        alone.table_BP = together.table_BP[row : row + 1]
        np.testing.assert_array_equal(alone.run(bench, route)[0], batch[row])


@pytest.mark.parametrize("route", ROUTES, ids=str)
@pytest.mark.parametrize("slot", [0, 200, 299])
@pytest.mark.parametrize("which", [0, 1], ids=["k", "v"])
def test_nan_in_a_live_slot_reaches_the_heads_that_read_it_and_no_other(bench, which, slot, route):
    problem = Problem(Case("float16", 8, 2, 64, (300,)))
    problem.pools[which, problem.table_BP[0, 0], 1, slot, 5] = np.nan
    got = problem.run(bench, route)[0]
    assert np.isfinite(got[:4]).all()
    where = np.isnan(got[4:])
    assert where.all() if which == 0 else where[:, 5].all()


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_scores_far_apart_do_not_overflow(bench, route):
    problem = Problem(Case("float16", 8, 2, 64, (130,)))
    problem.q_TNH *= np.float32(300)
    ref, bound = problem.reference(route)
    reference.assert_within(ref, problem.run(bench, route), bound)


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_a_pool_beyond_two_to_the_31_elements_is_addressed(device, bench, route):
    case = Case("float16", 8, 2, 64, (300,), page=256)
    near = Problem(case)
    far = Problem(case)
    pages = (1 << 31) // (case.K * case.page * case.H) + 4
    far.table_BP = np.array([[pages - 1, pages - 2]], np.int32)
    page_bytes = case.K * case.page * case.H * 2
    pool = device.allocate(pages * page_bytes, "pool of more than 2^31 elements")
    assert pool.nbytes // 2 > 1 << 31
    addresses = []
    for which in (0, 1):
        # K and V share the pool: V's pages lie just below K's.
        shift = 2 * which
        for at, page in enumerate(near.table_BP[0]):
            target = pages - 1 - at - shift
            device.write(pool, near.pools[which, page], target * page_bytes)
        addresses.append(pool.address - shift * page_bytes)
    got = far.run(bench, route, addresses)
    device.free(pool)
    np.testing.assert_array_equal(got, near.run(bench, route))
