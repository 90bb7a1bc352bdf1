"""One method an operation: picks the kernel, sizes the grid, keeps the record of the launch.

Addresses may point inside a buffer; counts are elements. T is the number of tokens.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hip_engine.device import Device, Kernel, LaunchRecord
from hip_engine.errors import RouteNotBuilt

# These mirror constants of the kernels: GemvShape, kElementwiseThreads, kChunk.
THREADS = 256
GEMV_ROWS_PER_WAVE = 4
GEMV_WAVES = 4
UNIT = 32
WAVE = 64
ARGMAX_THREADS = 1024
ATTENTION_CHUNK = 256
MAX_CHUNK_WORKGROUPS = 1024
HEAD_TILES = (1, 4)


class Matrix(NamedTuple):
    """A weight matrix on the device and where its product goes."""

    weight: int
    output: int
    rows: int


class AttentionShape(NamedTuple):
    """What an attention launch needs beside addresses. `head_stride`: elements between kv heads."""

    N: int
    K: int
    H: int
    head_stride: int
    max_chunks: int


def gemv_workgroups(rows: int, columns: int) -> int:
    """Workgroups for one matrix: GemvShape of kernels/gemv.hip."""
    units = max(columns // UNIT, 1)
    lanes = min(WAVE, 1 << (units.bit_length() - 1))
    return math.ceil(rows / (GEMV_WAVES * GEMV_ROWS_PER_WAVE * (WAVE // lanes)))


def attention_symbol(kernels: dict[str, Kernel], cache: str, H: int, G: int) -> str:
    """The manual/valu kernel for this shape.

    Raises:
      RouteNotBuilt: no kernel of this head size and cache type, with those that exist.
    """
    tile = HEAD_TILES[0] if G == 1 else HEAD_TILES[-1]
    symbol = f"attn_manual_valu_{cache}_h{H}_g{tile}"
    if symbol not in kernels:
        built = sorted(name for name in kernels if name.startswith("attn_manual_valu"))
        raise RouteNotBuilt(
            f"manual/valu has no kernel for head size {H} and a {cache} cache: "
            f"built are {', '.join(built)}"
        )
    return symbol


class Launcher:
    """Launches kernels of one code object and records what ran since `take_records`."""

    def __init__(self, device: Device, code_object: bytes):
        self.device = device
        self.kernels = device.load(code_object)
        self._records: list[LaunchRecord] = []

    def take_records(self) -> tuple[LaunchRecord, ...]:
        records, self._records = tuple(self._records), []
        return records

    def _launch(self, symbol: str, grid: tuple[int, ...], threads: int, *args):
        grid = (*grid, 1, 1)[:3]
        record = self.device.launch(self.kernels[symbol], grid, (threads, 1, 1), args)
        self._records.append(record)

    def gather_rows(self, format: str, table: int, rows: int, output: int, columns: int, T: int):
        self._launch(f"gather_rows_{format}", (T,), THREADS, table, rows, output, columns)

    def rms_norm(self, x: int, weight: int, output: int, D: int, eps: float, T: int):
        self._launch("rms_norm", (T,), THREADS, x, weight, output, D, np.float32(eps))

    def gemv(self, format: str, x: int, matrices: Sequence[Matrix], columns: int, T: int):
        """Up to three matrices of one format times the same x, in one launch."""
        # An absent matrix has no rows, so its addresses are never used.
        a, b, c = (*matrices, *[Matrix(0, 0, 0)] * (3 - len(matrices)))
        blocks = sum(gemv_workgroups(m.rows, columns) for m in matrices)
        addresses = (a.weight, b.weight, c.weight, a.output, b.output, c.output)
        self._launch(
            f"gemv_{format}",
            (blocks, T),
            GEMV_WAVES * WAVE,
            *(x, *addresses, a.rows, b.rows, c.rows, columns),
        )

    def rope(self, q: int, k: int, table: int, positions: int, outputs: tuple[int, int], NKH, T):
        N, K, H = NKH
        grid = (math.ceil((N + K) * H / 2 / THREADS), T)
        self._launch("rope", grid, THREADS, q, k, table, positions, *outputs, N, K, H)

    def kv_append(self, cache: str, k: int, v: int, positions: int, slabs, head_stride, KH, T):
        """`slabs`: addresses of the layer's K and V."""
        K, H = KH
        grid = (math.ceil(K * H / THREADS), T)
        args = (k, v, positions, *slabs, np.int64(head_stride), K, H)
        self._launch(f"kv_append_{cache}", grid, THREADS, *args)

    def attention(self, symbol: str, q: int, slabs, position: int, partials, output: int, S, shape):
        """Chunks, then their merge. `partials`: addresses of max_NC, sum_NC and out_NCH."""
        N, K, H, head_stride, max_chunks = shape
        tile = int(symbol.rpartition("_g")[2])
        workgroups = min(math.ceil(S / ATTENTION_CHUNK), MAX_CHUNK_WORKGROUPS)
        self._launch(
            symbol,
            (workgroups, K * math.ceil(N // K / tile)),
            THREADS,
            *(q, *slabs, position, *partials, np.int64(head_stride), workgroups),
            *(N, K, max_chunks, np.float32(1.0 / math.sqrt(H))),
        )
        self._launch("attn_merge_chunks", (N,), THREADS, *partials, position, output, H, max_chunks)

    def swiglu(self, gate: int, up: int, output: int, count: int):
        self._elementwise("swiglu", gate, up, output, count)

    def residual_add(self, a: int, b: int, output: int, count: int):
        self._elementwise("residual_add", a, b, output, count)

    def _elementwise(self, symbol: str, a: int, b: int, output: int, count: int):
        grid = (math.ceil(count / (4 * THREADS)),)
        self._launch(symbol, grid, THREADS, a, b, output, np.int64(count))

    def argmax(self, logits: int, top1: int, V: int, T: int):
        self._launch("argmax", (T,), ARGMAX_THREADS, logits, top1, V)
