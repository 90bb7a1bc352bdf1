"""One method an operation: picks the kernel, sizes the grid, keeps the record of the launch.

Addresses may point inside a buffer; counts are elements. T is the number of tokens.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hip_engine.arguments import attention_arguments
from hip_engine.device import Device, Graph, LaunchRecord

# These mirror constants of the kernels: GemvShape, kBatch, kElementwiseThreads, kChunk and so on.
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
MERGE_COLUMNS = 64


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


def chunk_workgroups(S: int, window: int) -> int:
    """Workgroups over the chunks that a query at the last of S slots can see."""
    seen = min(S, window + ATTENTION_CHUNK - 1) if window else S
    return min(math.ceil(seen / ATTENTION_CHUNK), MAX_CHUNK_WORKGROUPS)


class Launcher:
    """Launches kernels of one code object in one stream; records what ran since `take_records`."""

    def __init__(self, device: Device, code_object: bytes):
        self.device, self.code_object = device, code_object
        self.kernels = device.open(code_object)
        self.stream = device.stream()
        self._records: list[LaunchRecord] = []
        self._capturing = False

    def close(self):
        self.stream.close()

    def capture(self, launch: Callable[[], None]) -> Graph:
        """The launches that `launch()` asks for, captured and not made."""
        self._capturing = True
        try:
            with self.stream.capture() as capture:
                launch()
        finally:
            self._capturing = False
        return capture.graph

    def replay(self, graph: Graph):
        self._records.extend(graph.launch(self.stream))

    def take_records(self) -> tuple[LaunchRecord, ...]:
        records, self._records = tuple(self._records), []
        return records

    def _launch(self, symbol: str, grid: tuple[int, ...], threads: int, *args):
        kernel, block = self.kernels[symbol], (threads, 1, 1)
        record = self.device.launch(kernel, (*grid, 1, 1)[:3], block, args, stream=self.stream)
        if not self._capturing:
            self._records.append(record)

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
        weights, outputs = zip(*((m.weight, m.output) for m in (a, b, c)), strict=True)
        family, batches = ("gemv", 1) if T == 1 else ("gemm_valu", math.ceil(T / GEMM_TOKENS))
        self._launch(
            f"{family}_{format}",
            (blocks, batches),
            GEMV_WAVES * WAVE,
            *(x, *weights, a.rows, b.rows, c.rows, columns, T, *outputs),
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
        workgroups = chunk_workgroups(S, window)
        args["workgroups"] = workgroups
        grid = (workgroups, K * math.ceil(N // K / tile), T)
        self._launch(symbol, grid, THREADS, *attention_arguments(args))
        partials = tuple(int(args[name]) for name in ("max_TNC", "sum_TNC", "out_TNCH"))
        counts = N, H, int(args["max_chunks"])
        self.merge(partials, int(args["position_T"]), output, counts, S, window, T)

    def merge(self, partials: tuple[int, int, int], positions: int, output: int, NHC, S, window, T):
        """Of up to S slots. `partials`: max_TNC, sum_TNC and out_TNCH, with room for C chunks."""
        N, H, C = NHC
        chunks = math.ceil(S / ATTENTION_CHUNK)
        args = (positions, *partials, N, H, C, chunks, window, output)
        self._launch("attn_merge_chunks", (N * math.ceil(H / MERGE_COLUMNS), T), THREADS, *args)

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
