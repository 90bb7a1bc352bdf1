"""Launches: arguments to kernarg bytes, the AQL packet, and the loop over workgroups in threads."""

import bisect
import ctypes
import functools
import math
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hip_engine.device import Buffer, LaunchRecord, MemoryCounts, Traffic
from hip_engine.errors import LaunchError
from hip_engine.gfx942 import jit, layout
from hip_engine.gfx942.arguments import (
    MAX_BLOCK,
    MAX_LDS_BYTES,
    aql_packet,
    check_geometry,
    pack_arguments,
)
from hip_engine.gfx942.code_object import KernelDescriptor
from hip_engine.gfx942.findings import fault_error
from hip_engine.gfx942.memory import Memory, MemoryTable
from hip_engine.gfx942.ordering import order_matters
from hip_engine.gfx942.sanitizer import SanitizerState, check_bits

KERNARG_BYTES = 1 << 16
MAX_WAVES = MAX_BLOCK // layout.LANES
BUDGET = 1 << 40  # instructions a wave may execute before it counts as runaway
# Stack of a lane where the compiler could not bound it (recursion, calls through pointers).
DYNAMIC_STACK_BYTES = 1 << 14

MFMA = re.compile(r"v_mfma_(\w+)")
THREADING_PAYS = 100_000  # wave instructions; handing over to a thread costs about 50 us

_U32x3 = ctypes.c_uint32 * 3


class LaunchStruct(ctypes.Structure):
    """Mirror of the runtime's Launch."""

    _fields_ = [
        ("pieces", ctypes.c_void_p),
        ("memory", ctypes.POINTER(MemoryTable)),
        ("jumps", ctypes.c_void_p),
        ("code_base", ctypes.c_uint64),
        ("text", ctypes.c_uint64),
        ("text_words", ctypes.c_uint64),
        ("kernarg", ctypes.c_uint64),
        ("dispatch_packet", ctypes.c_uint64),
        ("queue", ctypes.c_uint64),
        ("grid", _U32x3),
        ("block", _U32x3),
        ("properties", ctypes.c_uint32),
        ("preload", ctypes.c_uint32),
        ("rsrc2", ctypes.c_uint32),
        ("mode", ctypes.c_uint32),
        ("vgpr_rows", ctypes.c_uint32),
        ("accum_rows", ctypes.c_uint32),
        ("waves", ctypes.c_uint32),
        ("entry", ctypes.c_int32),
        ("lds_bytes", ctypes.c_uint64),
        ("scratch_stride", ctypes.c_uint64),
        ("budget", ctypes.c_int64),
        ("checks", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("effects", ctypes.c_void_p),
    ]


class Outcome(ctypes.Structure):
    """Mirror of the runtime's Outcome."""

    _fields_ = [
        ("status", ctypes.c_int32),
        ("wave", ctypes.c_uint32),
        ("workgroup", _U32x3),
        ("site", ctypes.c_uint32),
        ("lane", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("address", ctypes.c_uint64),
        ("barriers", ctypes.c_uint64),
    ]


class Counters(ctypes.Structure):
    """Mirror of the runtime's Counters; see LaunchRecord.memory for the meaning."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "loads load_bytes load_lines load_wide_bytes stores store_bytes "
            "lds_accesses lds_passes flight_peak"
        ).split()
    ] + [
        ("by_buffer", ctypes.c_void_p),
        ("stamp", ctypes.c_uint64),
        ("seen", ctypes.c_uint64 * 512),
    ]


class Worker:
    """Wave states, LDS and scratch of one thread, and its sanitizer state and counters."""

    def __init__(self, sanitized: bool):
        self.sanitizer = SanitizerState(MAX_WAVES) if sanitized else None
        self.counters = Counters()
        self.by_buffer = np.zeros((0, 4), np.uint64)
        self.waves = np.zeros(MAX_WAVES * layout.WAVE_BYTES + 64, np.uint8)
        self.waves_address = -(-self.waves.ctypes.data // 64) * 64
        self.states = np.zeros(MAX_WAVES, np.int32)
        self.lds = np.zeros(MAX_LDS_BYTES + 64, np.uint8)
        self.scratch = np.zeros(0, np.uint8)

    def clear_counters(self, buffers: int) -> None:
        if len(self.by_buffer) != buffers:
            self.by_buffer = np.zeros((buffers, 4), np.uint64)
        self.by_buffer.fill(0)
        stamp = self.counters.stamp
        ctypes.memset(ctypes.byref(self.counters), 0, Counters.by_buffer.offset)
        self.counters.by_buffer, self.counters.stamp = self.by_buffer.ctypes.data, stamp

    def run(
        self, launch: LaunchStruct, counts: np.ndarray, counting: bool, first: int, step: int
    ) -> Outcome:
        needed = launch.waves * layout.LANES * launch.scratch_stride
        if needed > self.scratch.size:
            self.scratch = np.zeros(needed, np.uint8)
        outcome = Outcome()
        sanitizer = ctypes.byref(self.sanitizer.struct) if self.sanitizer else None
        _run_groups()(
            ctypes.byref(launch),
            self.waves_address,
            self.states.ctypes.data,
            self.lds.ctypes.data,
            self.scratch.ctypes.data,
            counts.ctypes.data,
            ctypes.byref(self.counters) if counting else None,
            sanitizer,
            first,
            step,
            ctypes.byref(outcome),
        )
        return outcome


@functools.cache
def _run_groups():
    pointers = [ctypes.c_void_p] * 8
    kind = ctypes.CFUNCTYPE(None, *pointers, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p)
    return kind(jit.runtime().address("run_groups"))


@dataclass
class EmulatedKernel:
    """A kernel of a loaded code object, compiled for this CPU.

    `explicit` and `hidden` are its arguments: those that a launch gives, those that the runtime
    fills in.
    """

    symbol: str
    code_object_sha256: str
    descriptor: KernelDescriptor
    compiled: jit.Compiled
    image: Buffer
    text: tuple[int, int]
    source_line: Callable[[int], str | None]

    def __post_init__(self):
        arguments = self.descriptor.arguments
        self.explicit = tuple(a for a in arguments if not a.hidden)
        self.hidden = tuple(a for a in arguments if a.hidden)
        words = self.text[1] // 4
        self.jumps = np.full(words, -1, np.int32)
        for index, offset in enumerate(self.compiled.block_addresses):
            self.jumps[(self.descriptor.entry + offset - self.text[0]) // 4] = index
        self.needs_order = any(order_matters(text) for _, text in self.compiled.sites)
        names = sorted({c for block in self.compiled.block_classes for c in block})
        self.class_names = names
        rows = [[block.get(n, 0) for n in names] for block in self.compiled.block_classes]
        self.class_matrix = np.array(rows, np.int64).reshape(len(rows), len(names))
        self.shapes, self.shape_matrix = self._shapes()

    def _shapes(self) -> tuple[list[str], np.ndarray]:
        """MFMA shapes, and how many of each are in each block."""
        found = [(at, MFMA.match(text)) for at, text in self.compiled.sites]
        found = [(at, match[1]) for at, match in found if match]
        names = sorted({name for _, name in found})
        matrix = np.zeros((len(self.compiled.block_addresses), len(names)), np.int64)
        for at, name in found:
            block = bisect.bisect_right(self.compiled.block_addresses, at) - 1
            matrix[block, names.index(name)] += 1
        return names, matrix

    @property
    def arguments(self):
        return tuple((a.name, a.offset, a.size, a.kind) for a in self.descriptor.arguments)


def _launch_struct(
    kernel: EmulatedKernel, memory: Memory, fixed, grid, block, lds: int, budget: int, checks: int
) -> LaunchStruct:
    d = kernel.descriptor
    if d.kernarg_bytes > KERNARG_BYTES:
        raise LaunchError(f"{kernel.symbol}: {d.kernarg_bytes} bytes of arguments")
    items = block[0] * block[1] * block[2]
    scratch = max(d.scratch_bytes, DYNAMIC_STACK_BYTES * d.uses_dynamic_stack)
    return LaunchStruct(
        pieces=ctypes.addressof(kernel.compiled.pieces),
        memory=ctypes.pointer(memory.table),
        jumps=kernel.jumps.ctypes.data,
        code_base=kernel.image.address,
        text=kernel.image.address + kernel.text[0],
        text_words=kernel.text[1] // 4,
        kernarg=fixed.kernarg.address,
        dispatch_packet=fixed.packet.address,
        queue=fixed.queue.address,
        grid=_U32x3(*grid),
        block=_U32x3(*block),
        properties=d.properties,
        preload=d.kernarg_preload,
        rsrc2=d.rsrc2,
        mode=d.float_mode,
        vgpr_rows=min(d.accum_offset, d.vgpr_count, 256),
        accum_rows=max(0, min(d.vgpr_count - d.accum_offset, 256)),
        waves=-(-items // layout.LANES),
        entry=kernel.compiled.entry,
        lds_bytes=lds,
        scratch_stride=-(-scratch // 16) * 16,
        budget=budget,
        checks=checks,
        effects=kernel.compiled.effects.ctypes.data,
    )


class Prepared:
    """What two launches of a kernel with the same geometry share."""

    def __init__(self, kernel: EmulatedKernel, struct_: LaunchStruct, packet: bytes, threads: int):
        self.struct = struct_
        self.kernel = kernel  # kept alive: the key of this entry is its id
        self.packet = np.frombuffer(packet, np.uint8)
        self.groups = math.prod(struct_.grid)
        self.counts = np.zeros((threads, len(kernel.compiled.block_addresses)), np.uint64)
        self.instructions = 0  # of the last launch, to judge whether threads pay


class FixedBuffers(NamedTuple):
    """Device memory that every launch uses."""

    kernarg: Buffer
    packet: Buffer
    queue: Buffer


class Dispatcher:
    """Runs launches, one at a time, on one or more threads of workgroups.

    `counters` may be set at any time: launches then count memory instructions and bytes.
    `busy_s`: seconds spent in kernels so far.
    """

    def __init__(
        self,
        memory: Memory,
        threads: int,
        budget: int = BUDGET,
        sanitize: frozenset[str] = frozenset(),
        counters: bool = False,
    ):
        self.memory, self.budget = memory, budget
        self.checks, self.counters = check_bits(sanitize), counters
        self.busy_s = 0.0
        self.workers = [Worker(bool(sanitize)) for _ in range(threads)]
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self.fixed = FixedBuffers(
            memory.allocate(KERNARG_BYTES, "kernarg segment"),
            memory.allocate(64, "dispatch packet"),
            memory.allocate(256, "queue"),
        )
        self._kernarg = memory.view(self.fixed.kernarg, 0, KERNARG_BYTES)
        self._packet = memory.view(self.fixed.packet, 0, 64)
        for buffer in self.fixed:
            memory.define(buffer, 0, buffer.nbytes)
        self._prepared: dict[tuple, Prepared] = {}

    def launch(self, kernel: EmulatedKernel, grid, block, args, dynamic_lds: int) -> LaunchRecord:
        """Run every workgroup; returns what was executed.

        Raises:
          LaunchError: refused before anything ran.
          DeviceFault: a kernel faulted; the first workgroup in order that did is reported.
        """
        prepared = self._prepare(kernel, tuple(grid), tuple(block), dynamic_lds)
        segment = pack_arguments(kernel, args, grid, block, dynamic_lds)
        self._kernarg[: len(segment)] = np.frombuffer(segment, np.uint8)
        self._packet[:] = prepared.packet
        counts = prepared.counts
        counts.fill(0)
        if self.counters:
            self._clear_counters()
        begin = time.perf_counter()
        failed = [o for o in self._run(prepared, counts) if o.status]
        self.busy_s += time.perf_counter() - begin
        if failed:
            worst = min(failed, key=lambda o: tuple(o.workgroup)[::-1])
            raise fault_error(kernel, worst, self.memory, self.budget)
        entered = counts.sum(axis=0).view(np.int64)
        executed = (entered @ kernel.class_matrix).tolist()
        shapes = (entered @ kernel.shape_matrix).tolist()
        prepared.instructions = sum(executed)
        return LaunchRecord(
            symbol=kernel.symbol,
            code_object_sha256=kernel.code_object_sha256,
            grid=tuple(grid),
            block=tuple(block),
            kernarg=bytes(segment),
            executed=dict(zip(kernel.class_names, executed, strict=True)),
            mfma=dict(zip(kernel.shapes, shapes, strict=True)),
            memory=self._memory_counts() if self.counters else None,
            blocks=self._blocks(kernel, entered) if self.counters else {},
        )

    @staticmethod
    def _blocks(kernel: EmulatedKernel, entered: np.ndarray) -> dict[int, int]:
        return dict(zip(kernel.compiled.block_addresses, entered.tolist(), strict=True))

    def _clear_counters(self) -> None:
        for worker in self.workers:
            worker.clear_counters(len(self.memory.buffers))

    def _memory_counts(self) -> MemoryCounts:
        totals = {
            name: sum(getattr(w.counters, name) for w in self.workers)
            for name, _ in Counters._fields_[:8]
        }
        peak = max(w.counters.flight_peak for w in self.workers)
        traffic = functools.reduce(np.add, (w.by_buffer for w in self.workers))
        touched = [self.memory.buffers[i] for i in np.flatnonzero(traffic.any(axis=1))]
        rows = traffic[traffic.any(axis=1)].tolist()
        by_buffer = {
            buffer: Traffic(*row)
            for buffer, row in zip(touched, rows, strict=True)
            if buffer not in self.fixed
        }
        return MemoryCounts(**totals, flight_peak=peak, by_buffer=by_buffer)

    def _prepare(self, kernel: EmulatedKernel, grid, block, dynamic_lds: int) -> Prepared:
        key = (id(kernel), grid, block, dynamic_lds)
        if key not in self._prepared:
            check_geometry(kernel, grid, block, dynamic_lds)
            lds = kernel.descriptor.lds_bytes + dynamic_lds
            fixed = self.fixed
            limits = self.budget, self.checks
            struct_ = _launch_struct(kernel, self.memory, fixed, grid, block, lds, *limits)
            packet = aql_packet(kernel, grid, block, fixed.kernarg.address, lds)
            self._prepared[key] = Prepared(kernel, struct_, packet, len(self.workers))
        return self._prepared[key]

    def _run(self, prepared: Prepared, counts: np.ndarray) -> list[Outcome]:
        """Workgroups in turn over the threads; short launches stay on the caller's thread, and so
        do those whose result would depend on the order of their atomics.
        """
        threads = min(len(self.workers), prepared.groups)
        ordered = prepared.kernel.needs_order
        if threads == 1 or ordered or prepared.instructions < THREADING_PAYS:
            return [self.workers[0].run(prepared.struct, counts[0], self.counters, 0, 1)]
        jobs = [
            self.pool.submit(
                self.workers[t].run, prepared.struct, counts[t], self.counters, t, threads
            )
            for t in range(1, threads)
        ]
        mine = self.workers[0].run(prepared.struct, counts[0], self.counters, 0, threads)
        return [mine, *(job.result() for job in jobs)]
