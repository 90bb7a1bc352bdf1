"""Part of a launch on the emulated device: what its workgroups executed and fetched.

The engine's own launcher says how a shape is launched. Of that grid the first workgroups run;
workgroups are alike, so the rest is extrapolated. Memory is sparse: a context costs address space.
"""

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES

from experiments.evidence.issue import issue_slots
from experiments.evidence.model import Work, workgroup_clocks
from experiments.evidence.shapes import Shape
from hip_engine import kernels
from hip_engine.arguments import ATTN_ARGS, KV_VIEW, record
from hip_engine.device import Buffer, LaunchRecord, Traffic
from hip_engine.gfx942.code_object import KernelDescriptor
from hip_engine.gfx942.device import EmulatedDevice
from hip_engine.gfx942.disassembly import disassemble
from hip_engine.gfx942.dispatch import EmulatedKernel
from hip_engine.gfx942.occupancy import LANES, workgroups_per_cu
from hip_engine.kv_cache import WHOLE_SEQUENCE
from hip_engine.kv_types import KvType
from hip_engine.launcher import ATTENTION_CHUNK, Launcher, Matrix
from hip_engine.routes import Route, attention_symbol
from hip_engine.weights import FORMATS

SLICE = 2
"""Workgroups along x that run; every one along y does."""
LANE_BYTES = 16
MOST_ROWS = 256  # of weights, of a workgroup
# Before the data, where the first arguments are preloaded. Attention: position, then block table
# and query. The merge and products ask for their data at once.
ROUND_TRIPS = {"attn_merge": 0, "attn": 2, "gem": 0}


@dataclass(frozen=True)
class Counted:
    """What `workgroups` of a kernel did.

    Attributes:
      grid: of the whole launch. least: bytes of K and V, or of weights, that had to be read;
      traffic: of those buffers, by lane. fetched: bytes that memory delivers for it: of K and V
      every lane's; of weights and partial sums, which lanes share within a load, every byte once.
    """

    descriptor: KernelDescriptor
    grid: tuple[int, int, int]
    threads: int
    workgroups: int
    launch: LaunchRecord
    slots: dict[str, int]
    least: float
    traffic: tuple[Traffic, ...]
    fetched: int

    @property
    def read(self) -> int:
        return sum(t.read for t in self.traffic)

    @property
    def over_read(self) -> float:
        return self.fetched / self.least

    @property
    def wide_share(self) -> float:
        return sum(t.read_wide for t in self.traffic) / self.read

    @property
    def line_efficiency(self) -> float:
        """Share of the 128-byte lines that a load touched which its lanes took.

        Loads that follow each other and share a line find it in the first-level cache.
        """
        return self.read / (128 * sum(t.lines for t in self.traffic))

    @property
    def flight_bytes(self) -> int:
        """Of one workgroup, if every load in flight is of 16 bytes a lane."""
        waves = math.ceil(self.threads / LANES)
        return waves * self.launch.memory.flight_peak * LANES * LANE_BYTES

    @property
    def bank_conflicts(self) -> float:
        """Passes over the LDS banks above the two that an access takes, an access."""
        memory = self.launch.memory
        return memory.lds_passes / memory.lds_accesses - 2 if memory.lds_accesses else 0.0

    @property
    def clocks(self) -> float:
        return workgroup_clocks(self.slots, self.launch.memory, self.workgroups)

    @property
    def resident(self) -> int:
        return workgroups_per_cu(self.descriptor, self.threads)

    def work(self) -> Work:
        symbol = self.descriptor.symbol
        trips = next(n for prefix, n in ROUND_TRIPS.items() if symbol.startswith(prefix))
        each = self.fetched / self.workgroups
        return Work(each, self.clocks, self.flight_bytes, self.resident, trips)


TYPES = {format: type for type, format in FORMATS.items()}


def _row_bytes(format: str, columns: int) -> int:
    weights, nbytes = GGML_QUANT_SIZES[TYPES[format]]
    return columns // weights * nbytes


class Launch(NamedTuple):
    """What a launcher asked a device for."""

    kernel: EmulatedKernel
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    args: tuple


class Listing:
    """A device for a Launcher, which lists launches and makes none."""

    def __init__(self, device: EmulatedDevice):
        self.launches: list[Launch] = []
        self.open, self.stream = device.open, device.stream

    def launch(self, kernel, grid, block, args, stream=None) -> None:
        self.launches.append(Launch(kernel, grid, block, tuple(args)))


class Counter:
    """A device with counters, and the kernels of one code object."""

    def __init__(self, head_dim: int, cache: str):
        self.device = EmulatedDevice(counters=True)
        code_object = kernels.build(instance=kernels.Instance(head_dim, cache))
        self._listing = Listing(self.device)
        self.launcher = Launcher(self._listing, code_object)
        self._code = disassemble(code_object)

    @functools.cached_property
    def symbols(self) -> tuple[str, ...]:
        return tuple(self.launcher.kernels)

    def attention(
        self, shape: Shape, route: Route, kind: KvType, S: int
    ) -> tuple[Counted, Counted]:
        """Attention and its merge, for one sequence of S tokens."""
        symbol = attention_symbol(self.symbols, route, kind, shape)
        args, buffers = self._attention_args(shape, kind, S)
        try:
            y = buffers["y"].address
            launches = self._record(lambda go: go.attention(symbol, args, S, shape.H, y, 1))
            kv = buffers["k"], buffers["v"]
            chunks = min(SLICE, launches[0].grid[0])
            slots = min(S, chunks * ATTENTION_CHUNK)
            least = 2 * slots * shape.K * shape.H * kind.raw.itemsize
            attention = self._count(launches[0], (chunks, launches[0].grid[1], 1), kv, least)
            least = 4 * math.ceil(S / ATTENTION_CHUNK) * (shape.H + 2)
            partials = [buffers[name] for name in ("max", "sum", "out")]
            return attention, self._count(launches[1], (1, 1, 1), partials, least, shared=True)
        finally:
            self._free(buffers)

    def attention_workgroups(self, symbol: str, shape: Shape, S: int, B: int) -> list[int]:
        """Of attention and of its merge, for B sequences of S tokens."""
        args = np.zeros((), ATTN_ARGS)
        args["N"], args["K"] = shape.N, shape.K
        launches = self._record(lambda go: go.attention(symbol, args, S, shape.H, 0, B))
        return [math.prod(launch.grid) for launch in launches]

    def product(self, shape: Shape, matrix: str, family: str, format: str, T: int) -> Counted:
        """One launch of weights times T tokens; family "valu" or "mfma"."""
        rows, columns = shape.matrices[matrix]
        row = _row_bytes(format, columns)
        nbytes = [F * row for F in rows]
        # Only rows of the workgroups that run.
        held = [min(F, SLICE * MOST_ROWS) * row for F in rows]
        buffers = {f"w{i}": self.device.allocate(n, "weights") for i, n in enumerate(held)}
        weights = list(buffers.values())
        buffers |= {f"y{i}": self.device.allocate(4 * F * T, "product") for i, F in enumerate(rows)}
        buffers["x"] = self.device.allocate(4 * columns * T, "x")
        x = buffers["x"].address
        each = [
            Matrix(buffers[f"w{i}"].address, buffers[f"y{i}"].address, F)
            for i, F in enumerate(rows)
        ]
        try:
            if family == "mfma":
                (launch,) = self._record(lambda go: go.gemm_mfma(format, x, each[0], columns, T))
                nbytes = nbytes[:1]
            else:
                (launch,) = self._record(lambda go: go.gemv(format, x, each, columns, T))
            grid = (min(SLICE, launch.grid[0]), 1, 1)
            least = sum(nbytes) * grid[0] / launch.grid[0]
            return self._count(launch, grid, weights, least, shared=True)
        finally:
            self._free(buffers)

    def _record(self, launch: Callable[[Launcher], None]) -> list[Launch]:
        self._listing.launches = []
        launch(self.launcher)
        return self._listing.launches

    def _count(self, launch: Launch, grid, buffers, least: float, shared=False) -> Counted:
        with self.device.watch() if shared else contextlib.nullcontext() as log:
            ran = self.device.launch(launch.kernel, grid, launch.block, launch.args)
        none = Traffic(0, 0, 0, 0)
        traffic = tuple(ran.memory.by_buffer.get(buffer, none) for buffer in buffers)
        descriptor = launch.kernel.descriptor
        end = descriptor.entry + descriptor.size
        code = [i for i in self._code if descriptor.entry <= i.address < end]
        return Counted(
            descriptor,
            launch.grid,
            math.prod(launch.block),
            math.prod(grid),
            ran,
            issue_slots(code, ran.blocks),
            least,
            traffic,
            sum(int(log.read(b).sum()) for b in buffers)
            if shared
            else sum(t.read for t in traffic),
        )

    def _attention_args(self, shape: Shape, kind: KvType, S: int):
        N, K, H = shape.N, shape.K, shape.H
        chunks = math.ceil(S / ATTENTION_CHUNK)
        slab = K * S * H * kind.raw.itemsize
        sizes = {"k": slab, "v": slab, "table": 4, "scales": 8 * K, "cos_sin": 4 * S * H}
        sizes |= {"q": 4 * N * H, "new": 4 * K * H, "position": 4, "sequence": 4, "y": 4 * N * H}
        sizes |= {"max": 4 * N * chunks, "sum": 4 * N * chunks, "out": 4 * N * chunks * H}
        buffers = {name: self.device.allocate(nbytes, name) for name, nbytes in sizes.items()}
        at = {name: buffer.address for name, buffer in buffers.items()}
        self.device.write(buffers["position"], np.array([S - 1], np.int32))
        self.device.write(buffers["scales"], np.ones(2 * K, np.float32))
        args = np.zeros((), ATTN_ARGS)
        args["kv"] = record(
            KV_VIEW,
            k_PKJH=at["k"],
            v_PKJH=at["v"],
            table_BP=at["table"],
            scales_2K=at["scales"],
            page_stride=K * S * H,
            head_stride=S * H,
            log2_page=WHOLE_SEQUENCE,
            table_stride=1,
        )
        args["q_TNH"], args["k_TKH"], args["v_TKH"] = at["q"], at["new"], at["new"]
        args["cos_sin_SH"] = at["cos_sin"]
        args["k_append_PKJH"], args["v_append_PKJH"] = at["k"], at["v"]
        args["position_T"], args["sequence_T"] = at["position"], at["sequence"]
        args["max_TNC"], args["sum_TNC"], args["out_TNCH"] = at["max"], at["sum"], at["out"]
        args["N"], args["K"], args["max_chunks"], args["scale"] = N, K, chunks, H**-0.5
        return args, buffers

    def _free(self, buffers: dict[str, Buffer]) -> None:
        for buffer in buffers.values():
            self.device.free(buffer)
