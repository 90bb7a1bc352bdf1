import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from hip_engine.launcher import Matrix
from hip_engine.weights import FORMATS
from tests.hip_engine import reference
from tests.tiny_gguf import random_raw

# Prime rows everywhere; columns with tails, and so long that lanes take more than one unit.
PLAIN = (1, 31, 97, 2089)
BLOCKS_OF_32 = (32, 96, 2144)
SUPERBLOCKS = (256, 768, 2304)
COLUMNS = {
    **dict.fromkeys((T.F32, T.F16, T.BF16), PLAIN),
    **dict.fromkeys((T.Q4_0, T.Q8_0), BLOCKS_OF_32),
    **dict.fromkeys((T.Q4_K, T.Q5_K, T.Q6_K), SUPERBLOCKS),
}
CASES = [(type, columns) for type in COLUMNS for columns in COLUMNS[type]]


def weights(type, rows, columns, seed=0):
    """Bytes of a matrix as a file holds them, and its values."""
    rng = np.random.default_rng([seed, rows, columns])
    if type == T.Q4_0:
        raw = gguf.quantize(rng.standard_normal((rows, columns)).astype(np.float32), type)
    else:
        raw = random_raw(rng, (rows, columns), type)
    return raw, gguf.dequantize(raw, type).astype(np.float32)


def test_every_format_that_the_engine_accepts_is_tested():
    assert COLUMNS.keys() == FORMATS.keys()


@pytest.mark.parametrize(("type", "columns"), CASES, ids=lambda v: getattr(v, "name", v))
def test_gemv_agrees_with_fp64(bench, type, columns):
    rows = 37
    raw, w = weights(type, rows, columns)
    x = np.random.default_rng(columns).standard_normal(columns).astype(np.float32)
    with bench.scope():
        y = bench.output(4 * rows)
        matrix = Matrix(bench.put(raw), y.address, rows)
        bench.launch.gemv(FORMATS[type], bench.put(x), [matrix], columns, T=1)
        got = bench.result(y, np.float32, (rows,))
    reference.assert_within(*_inserted(reference.gemv(w, x), got))


def test_three_matrices_of_different_heights_share_a_launch(bench):
    heights, columns, T_ = (131, 1, 67), 256, 3
    pairs = [weights(T.Q4_K, rows, columns, seed=rows) for rows in heights]
    x_TD = np.random.default_rng(1).standard_normal((T_, columns)).astype(np.float32)
    with bench.scope():
        outputs = [bench.output(4 * rows * T_) for rows in heights]
        matrices = [
            Matrix(bench.put(raw), y.address, rows)
            for (raw, _), y, rows in zip(pairs, outputs, heights, strict=True)
        ]
        bench.launch.gemv("q4_k", bench.put(x_TD), matrices, columns, T=T_)
        for (_, w), y, rows in zip(pairs, outputs, heights, strict=True):
            got_TF = bench.result(y, np.float32, (T_, rows))
            for x, got in zip(x_TD, got_TF, strict=True):
                reference.assert_within(*_inserted(reference.gemv(w, x), got))


QUICK = (T.F16, T.Q4_K, T.Q6_K)
EVERY_FORMAT = [
    pytest.param(type, id=type.name, marks=[pytest.mark.slow] * (type not in QUICK))
    for type in FORMATS
]


@pytest.mark.parametrize("type", EVERY_FORMAT)
def test_a_token_has_the_same_bits_alone_and_in_a_batch(bench, type):
    rows, columns = 37, COLUMNS[type][-1]
    raw, _ = weights(type, rows, columns)
    for tokens in (2, 4, 5, 17):
        x_TD = np.random.default_rng(tokens).standard_normal((tokens, columns)).astype(np.float32)
        with bench.scope():
            w, x, y = bench.put(raw), bench.put(x_TD), bench.output(4 * rows * tokens)
            alone = bench.output(4 * rows)
            matrix = Matrix(w, y.address, rows)
            bench.launch.gemv(FORMATS[type], x, [matrix], columns, tokens)
            batch_TF = bench.result(y, np.float32, (tokens, rows))
            for token in (0, tokens - 1):
                address, matrix = x + 4 * columns * token, Matrix(w, alone.address, rows)
                bench.launch.gemv(FORMATS[type], address, [matrix], columns, T=1)
                one_F = bench.result(alone, np.float32, (rows,))
                np.testing.assert_array_equal(batch_TF[token], one_F)


TAILS = (1, 15, 16, 17, 31, 32, 33, 48)


@pytest.mark.parametrize("tokens", [*TAILS, 512])
def test_vector_units_agree_with_fp64_at_every_tile_tail(bench, tokens):
    rows, columns = 37, 256
    raw, w = weights(T.Q4_K, rows, columns)
    x_TD = np.random.default_rng(tokens).standard_normal((tokens, columns)).astype(np.float32)
    with bench.scope():
        y = bench.output(4 * rows * tokens)
        matrix = Matrix(bench.put(raw), y.address, rows)
        bench.launch.gemv("q4_k", bench.put(x_TD), [matrix], columns, tokens)
        got_TF = bench.result(y, np.float32, (tokens, rows))
    for x, got in zip(x_TD, got_TF, strict=True):
        reference.assert_within(*_inserted(reference.gemv(w, x), got))


@pytest.mark.parametrize("tokens", [*TAILS, 512])
def test_matrix_cores_agree_with_fp64_at_every_tile_tail(bench, tokens):
    _compare_on_matrix_cores(bench, T.Q4_K, 70, 256, tokens)


@pytest.mark.parametrize("type", EVERY_FORMAT)
def test_matrix_cores_decode_every_format(bench, type):
    columns = 768 if type in (T.Q4_K, T.Q5_K, T.Q6_K) else 96
    _compare_on_matrix_cores(bench, type, 300, columns, 17)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [*TAILS, 512])
@pytest.mark.parametrize("type", FORMATS, ids=lambda t: t.name)
def test_every_format_agrees_with_fp64_at_every_tile_tail_on_both_units(bench, type, tokens):
    columns = COLUMNS[type][-1] - COLUMNS[type][-1] % 32
    _compare_on_matrix_cores(bench, type, 70, columns, tokens)
    raw, w = weights(type, 37, columns)
    x_TD = np.random.default_rng(tokens).standard_normal((tokens, columns)).astype(np.float32)
    with bench.scope():
        y = bench.output(4 * 37 * tokens)
        matrix = Matrix(bench.put(raw), y.address, 37)
        bench.launch.gemv(FORMATS[type], bench.put(x_TD), [matrix], columns, tokens)
        got_TF = bench.result(y, np.float32, (tokens, 37))
    for x, got in zip(x_TD, got_TF, strict=True):
        reference.assert_within(*_inserted(reference.gemv(w, x), got))


def _compare_on_matrix_cores(bench, type, rows, columns, tokens):
    raw, w = weights(type, rows, columns)
    x_TD = np.random.default_rng(tokens).standard_normal((tokens, columns)).astype(np.float32)
    with bench.scope():
        y = bench.output(4 * rows * tokens)
        matrix = Matrix(bench.put(raw), y.address, rows)
        bench.launch.gemm_mfma(FORMATS[type], bench.put(x_TD), matrix, columns, tokens)
        got_TF = bench.result(y, np.float32, (tokens, rows))
    (record,) = bench.launch.take_records()[-1:]
    assert record.executed["mfma"] > 0
    for x, got in zip(x_TD, got_TF, strict=True):
        reference.assert_within(*_inserted(reference.gemv(w, x, "float16"), got))


@pytest.mark.parametrize("type", FORMATS, ids=lambda t: t.name)
def test_gathered_rows_are_the_bits_of_the_gguf_package(bench, type):
    columns = COLUMNS[type][-1]
    raw, w = weights(type, 11, columns)
    rows = np.array([10, 0, 7], np.int32)
    with bench.scope():
        y = bench.output(4 * rows.size * columns)
        table, wanted = bench.put(raw), bench.put(rows)
        bench.launch.gather_rows(FORMATS[type], table, wanted, y.address, columns, T=rows.size)
        got = bench.result(y, np.float32, (rows.size, columns))
    np.testing.assert_array_equal(got, w[rows])


def _inserted(ref_and_bound, got):
    ref, bound = ref_and_bound
    return ref, got, bound
