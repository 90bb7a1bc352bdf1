"""One method an operation: picks the kernel, sizes the grid, keeps the record of the launch.

Addresses may point inside a buffer; counts are elements. T is the number of tokens.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from hip_engine.device import Device, LaunchRecord

# These mirror constants of the kernels: GemvShape, kBatch, kElementwiseThreads, kChunk.
THREADS = 256
GEMV_ROWS_PER_WAVE = 4
GEMV_WAVES = 4
GEMM_TOKENS = 4
GEMM_MFMA_ROWS, GEMM_MFMA_TOKENS = 256, 16
UNIT = 32
WAVE = 64
ARGMAX_THREADS = 1024
ATTENTION_CHUNK = 256
MAX_CHUNK_WORKGROUPS = 1024


class Launch(NamedTuple):
    """A launch with everything it needs, to be made any number of times."""

    symbol: str
    grid: tuple[int, int, int]
    threads: int
    args: tuple


class Matrix(NamedTuple):
    """A weight matrix on the device and where its product goes."""

    weight: int
    output: int
    rows: int


def gemv_workgroups(rows: int, columns: int) -> int:
    """Workgroups for one matrix: GemvShape of kernels/gemv.hip."""
    groups = WAVE // lanes_of_a_row(columns)
    return math.ceil(rows / (GEMV_WAVES * GEMV_ROWS_PER_WAVE * groups))


def lanes_of_a_row(columns: int) -> int:
    """Lanes that share a row of a weight matrix: a power of two up to the wave."""
    units = max(columns // UNIT, 1)
    return min(WAVE, 1 << (units.bit_length() - 1))


class Launcher:
    """Launches kernels of one code object and records what ran since `take_records`."""

    def __init__(self, device: Device, code_object: bytes):
        self.device = device
        self.kernels = device.open(code_object)
        self._records: list[LaunchRecord] = []
        self._recording: list[Launch] | None = None

    @contextmanager
    def recording(self) -> Iterator[list[Launch]]:
        """Inside, launches are listed and not made."""
        self._recording = []
        try:
            yield self._recording
        finally:
            self._recording = None

    def replay(self, launches: Sequence[Launch]):
        for symbol, grid, threads, args in launches:
            record = self.device.launch(self.kernels[symbol], grid, (threads, 1, 1), args)
            self._records.append(record)

    def take_records(self) -> tuple[LaunchRecord, ...]:
        records, self._records = tuple(self._records), []
        return records

    def _launch(self, symbol: str, grid: tuple[int, ...], threads: int, *args):
        launch = Launch(symbol, (*grid, 1, 1)[:3], threads, args)
        if self._recording is None:
            self.replay([launch])
        else:
            self._recording.append(launch)

    def gather_rows(self, format: str, table: int, rows: int, output: int, columns: int, T: int):
        self._launch(f"gather_rows_{format}", (T,), THREADS, table, rows, output, columns)

    def rms_norm(self, x: int, weight: int, output: int, D: int, eps: float, T: int):
        self._launch("rms_norm", (T,), THREADS, x, weight, output, D, np.float32(eps))

    def gemv(self, format: str, x: int, matrices: Sequence[Matrix], columns: int, T: int):
        """Up to three matrices of one format times the same x, in one launch.

        One token or many: every token gets the same bits either way.
        """
        # An absent matrix has no rows, so its addresses are never used.
        a, b, c = (*matrices, *[Matrix(0, 0, 0)] * (3 - len(matrices)))
        blocks = sum(gemv_workgroups(m.rows, columns) for m in matrices)
        addresses = (a.weight, b.weight, c.weight, a.output, b.output, c.output)
        family, batches = ("gemv", 1) if T == 1 else ("gemm_valu", math.ceil(T / GEMM_TOKENS))
        self._launch(
            f"{family}_{format}",
            (blocks, batches),
            GEMV_WAVES * WAVE,
            *(x, *addresses, a.rows, b.rows, c.rows, columns, T),
        )

    def gemm_mfma(self, format: str, x: int, matrix: Matrix, columns: int, T: int):
        """As `gemv` on the matrix cores, f16 operands; `columns` must be a multiple of 32."""
        grid = (math.ceil(matrix.rows / GEMM_MFMA_ROWS), math.ceil(T / GEMM_MFMA_TOKENS))
        args = (x, matrix.weight, matrix.output, matrix.rows, columns, T)
        self._launch(f"gemm_mfma_{format}", grid, THREADS, *args)

    def rope(self, q: int, k: int, table: int, positions: int, outputs: tuple[int, int], NKH, T):
        N, K, H = NKH
        grid = (math.ceil((N + K) * H / 2 / THREADS), T)
        self._launch("rope", grid, THREADS, q, k, table, positions, *outputs, N, K, H)

    def kv_append(self, cache: str, k: int, v: int, rows: tuple[int, int], view, KH, T):
        """`rows`: addresses of position_T and sequence_T; `view`: the layer's KvView."""
        K, H = KH
        grid = (math.ceil(K * H / THREADS), T)
        self._launch(f"kv_append_{cache}", grid, THREADS, k, v, *rows, view, K, H)

    def attention(self, symbol: str, args: np.ndarray, S: int, H: int, output: int, T: int):
        """Chunks, then their merge. `args`: AttnArgs, whose workgroups are set here for S slots."""
        N, K, window = int(args["N"]), int(args["K"]), int(args["window"])
        tile = int(symbol.rpartition("_g")[2])
        seen = min(S, window + ATTENTION_CHUNK - 1) if window else S
        workgroups = min(math.ceil(seen / ATTENTION_CHUNK), MAX_CHUNK_WORKGROUPS)
        args["workgroups"] = workgroups
        grid = (workgroups, K * math.ceil(N // K / tile), T)
        # A copy: a recorded launch must not see what the next layer writes into `args`.
        self._launch(symbol, grid, THREADS, args.copy()[()])
        partials = (int(args[name]) for name in ("max_TNC", "sum_TNC", "out_TNCH", "position_T"))
        counts = (N, H, int(args["max_chunks"]), window)
        self._launch("attn_merge_chunks", (N, T), THREADS, *partials, output, *counts)

    def swiglu(self, gate: int, up: int, output: int, count: int):
        self._elementwise("swiglu", gate, up, output, count)

    def residual_add(self, a: int, b: int, output: int, count: int):
        self._elementwise("residual_add", a, b, output, count)

    def _elementwise(self, symbol: str, a: int, b: int, output: int, count: int):
        grid = (math.ceil(count / (4 * THREADS)),)
        self._launch(symbol, grid, THREADS, a, b, output, np.int64(count))

    def argmax(self, logits: int, top1: int, V: int, T: int):
        self._launch("argmax", (T,), ARGMAX_THREADS, logits, top1, V)

    def advance(self, top1: int, tokens: int, positions: int, history: int, S: int, T: int):
        grid = (math.ceil(T / WAVE),)
        self._launch("advance", grid, WAVE, top1, tokens, positions, history, T, S)

    def copy_page(self, k: int, v: int, layer_words: int, words: int, pages, layers: int):
        """`pages`: (from, to), in every layer. A word is 4 bytes."""
        grid = (math.ceil(words / (4 * THREADS)), layers)
        numbers = map(np.int64, (layer_words, words, *pages))
        self._launch("kv_copy_page", grid, THREADS, k, v, *numbers)

    def fill_page(self, k: int, v: int, layer_words: int, words: int, page, layers: int, pattern):
        """Every word of the page becomes `pattern`."""
        grid = (math.ceil(words / (4 * THREADS)), layers)
        numbers = map(np.int64, (layer_words, words, page))
        self._launch("kv_fill_page", grid, THREADS, k, v, *numbers, np.uint32(pattern))
