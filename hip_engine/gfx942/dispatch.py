"""Launches: arguments to kernarg bytes, the AQL packet, and the loop over workgroups in threads."""

import ctypes
import math
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hip_engine.device import Buffer, LaunchRecord
from hip_engine.errors import CodeObjectError, DeviceFault, LaunchError
from hip_engine.gfx942 import jit, layout
from hip_engine.gfx942.code_object import KernelDescriptor
from hip_engine.gfx942.memory import Memory, MemoryTable

MAX_LDS_BYTES = 1 << 16
MAX_BLOCK = 1024
KERNARG_BYTES = 1 << 16
MAX_WAVES = MAX_BLOCK // layout.LANES
DEFAULT_MODE = 0xF0  # round to nearest even, no subnormal flushed
BUDGET = 1 << 40  # instructions a wave may execute before it counts as runaway
# Stack of a lane where the compiler could not bound it (recursion, calls through pointers).
DYNAMIC_STACK_BYTES = 1 << 14

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


FAULTS = {
    layout.FAULT_GLOBAL_LOAD: "load from global memory",
    layout.FAULT_GLOBAL_STORE: "store to global memory",
    layout.FAULT_LDS: "access to LDS",
    layout.FAULT_SCRATCH: "access to scratch",
    layout.FAULT_JUMP: "jump to an address that is no code",
    layout.FAULT_TRAP: "trap instruction",
}


class Worker:
    """Wave states, LDS and scratch of one thread."""

    def __init__(self):
        self.waves = np.zeros(MAX_WAVES * layout.WAVE_BYTES + 64, np.uint8)
        self.waves_address = -(-self.waves.ctypes.data // 64) * 64
        self.states = np.zeros(MAX_WAVES, np.int32)
        self.lds = np.zeros(MAX_LDS_BYTES + 64, np.uint8)
        self.scratch = np.zeros(0, np.uint8)

    def run(self, launch: LaunchStruct, counts: np.ndarray, first: int, step: int) -> Outcome:
        needed = launch.waves * layout.LANES * launch.scratch_stride
        if needed > self.scratch.size:
            self.scratch = np.zeros(needed, np.uint8)
        outcome = Outcome()
        _run_groups()(
            ctypes.byref(launch),
            self.waves_address,
            self.states.ctypes.data,
            self.lds.ctypes.data,
            self.scratch.ctypes.data,
            counts.ctypes.data,
            first,
            step,
            ctypes.byref(outcome),
        )
        return outcome


def _run_groups():
    pointers = [ctypes.c_void_p] * 6
    kind = ctypes.CFUNCTYPE(
        None, *pointers, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p, use_errno=False
    )
    global _run_groups_function
    if _run_groups_function is None:
        _run_groups_function = kind(jit.runtime().address("run_groups"))
    return _run_groups_function


_run_groups_function = None


@dataclass
class EmulatedKernel:
    """A kernel of a loaded code object, compiled for this CPU."""

    symbol: str
    code_object_sha256: str
    descriptor: KernelDescriptor
    compiled: jit.Compiled
    image: Buffer
    text: tuple[int, int]

    def __post_init__(self):
        words = self.text[1] // 4
        self.jumps = np.full(words, -1, np.int32)
        for index, offset in enumerate(self.compiled.block_addresses):
            self.jumps[(self.descriptor.entry + offset - self.text[0]) // 4] = index
        names = sorted({c for block in self.compiled.block_classes for c in block})
        self.class_names = names
        rows = [[block.get(n, 0) for n in names] for block in self.compiled.block_classes]
        self.class_matrix = np.array(rows, np.int64).reshape(len(rows), len(names))

    @property
    def arguments(self):
        return tuple((a.name, a.offset, a.size, a.kind) for a in self.descriptor.arguments)


def pack_arguments(kernel: EmulatedKernel, args, grid, block, dynamic_lds: int) -> bytearray:
    """Kernarg segment from Python values: explicit arguments, then the hidden ones.

    `args` may also be the bytes of the explicit arguments, as HIP_LAUNCH_PARAM_BUFFER_POINTER
    and objects without metadata have them.

    Raises:
      LaunchError: wrong count, or a value that does not fit its argument.
    """
    if isinstance(args, bytes | bytearray):
        return _fill_hidden(kernel, _raw_segment(kernel, args), grid, block, dynamic_lds)
    explicit = [a for a in kernel.descriptor.arguments if not a.hidden]
    if len(args) != len(explicit):
        raise LaunchError(f"{kernel.symbol} takes {len(explicit)} arguments, {len(args)} given")
    segment = bytearray(max(kernel.descriptor.kernarg_bytes, 16))
    for position, (argument, value) in enumerate(zip(explicit, args, strict=True)):
        try:
            raw = _argument_bytes(value, argument.size)
        except (struct.error, OverflowError, TypeError, ValueError) as error:
            raise LaunchError(
                f"{kernel.symbol}: argument {position} ({argument.name or argument.kind}, "
                f"{argument.size} bytes) does not hold {value!r}: {error}"
            ) from error
        segment[argument.offset : argument.offset + argument.size] = raw
    return _fill_hidden(kernel, segment, grid, block, dynamic_lds)


def _raw_segment(kernel: EmulatedKernel, raw: bytes) -> bytearray:
    arguments = kernel.descriptor.arguments
    needed = max((a.offset + a.size for a in arguments if not a.hidden), default=0)
    size = kernel.descriptor.kernarg_bytes
    if not needed <= len(raw) <= max(-(-size // 16) * 16, 16):
        raise LaunchError(
            f"{kernel.symbol}: {len(raw)} bytes of arguments, it takes {needed or size}"
        )
    segment = bytearray(max(size, 16))
    segment[: len(raw)] = raw
    return segment


def _fill_hidden(kernel: EmulatedKernel, segment, grid, block, dynamic_lds: int) -> bytearray:
    for argument in kernel.descriptor.arguments:
        if argument.hidden:
            value = _hidden(argument.kind, grid, block, dynamic_lds)
            raw = value.to_bytes(argument.size, "little")
            segment[argument.offset : argument.offset + argument.size] = raw
    return segment


def _argument_bytes(value, size: int) -> bytes:
    if isinstance(value, Buffer):
        value = value.address
    if isinstance(value, np.generic):
        raw = value.tobytes()
    elif isinstance(value, bytes | bytearray):
        raw = bytes(value)
    elif isinstance(value, float):
        raw = struct.pack({4: "<f", 8: "<d"}[size], value) if size in (4, 8) else b""
    else:
        raw = int(value).to_bytes(size, "little", signed=value < 0)
    if len(raw) != size:
        raise TypeError(f"{len(raw)} bytes given")
    return raw


def _hidden(kind: str, grid, block, dynamic_lds: int) -> int:
    axis = {"x": 0, "y": 1, "z": 2}.get(kind[-1], 0)
    if kind.startswith("hidden_block_count"):
        return grid[axis]
    if kind.startswith("hidden_group_size"):
        return block[axis]
    if kind == "hidden_grid_dims":
        return max(1, *(i + 1 for i in range(3) if grid[i] * block[i] > 1), 1)
    if kind == "hidden_dynamic_lds_size":
        return dynamic_lds
    if kind == "hidden_shared_base":
        return 0x00010000
    if kind == "hidden_private_base":
        return 0x00020000
    return 0


def aql_packet(kernel: EmulatedKernel, grid, block, kernarg: int, lds: int) -> bytes:
    """The HSA kernel dispatch packet that a kernel may read through its dispatch pointer."""
    packet = bytearray(64)
    struct.pack_into("<HH3H", packet, 0, 0, 3, *block)
    struct.pack_into("<3I", packet, 12, *(g * b for g, b in zip(grid, block, strict=True)))
    struct.pack_into("<II", packet, 24, kernel.descriptor.scratch_bytes, lds)
    struct.pack_into("<QQ", packet, 32, kernel.image.address, kernarg)
    return bytes(packet)


def check_geometry(kernel: EmulatedKernel, grid, block, dynamic_lds: int) -> None:
    """Refuse a launch that the hardware would refuse, before anything is written."""
    if len(grid) != 3 or len(block) != 3 or min(*grid, *block) < 1:
        raise LaunchError(
            f"{kernel.symbol}: grid {grid} and block {block} must be 3 positive sizes"
        )
    if max(grid) >= 1 << 31:
        raise LaunchError(f"{kernel.symbol}: grid {grid} is too large")
    items = block[0] * block[1] * block[2]
    limit = min(kernel.descriptor.max_workgroup_size, MAX_BLOCK)
    if items > limit:
        raise LaunchError(f"{kernel.symbol}: a block of {items} work-items; it takes {limit}")
    lds = kernel.descriptor.lds_bytes + dynamic_lds
    if dynamic_lds < 0 or lds > MAX_LDS_BYTES:
        raise LaunchError(f"{kernel.symbol}: {lds} bytes of LDS, the chip has {MAX_LDS_BYTES}")


def _launch_struct(
    kernel: EmulatedKernel, memory: Memory, fixed, grid, block, lds: int, budget: int
) -> LaunchStruct:
    d = kernel.descriptor
    if d.float_mode != DEFAULT_MODE:
        raise CodeObjectError(
            f"{kernel.symbol}: float mode 0x{d.float_mode:02x} (flushed subnormals or another "
            "rounding) is not implemented; build it with subnormals kept (mode 0xf0)"
        )
    if d.kernarg_bytes > KERNARG_BYTES:
        raise LaunchError(f"{kernel.symbol}: {d.kernarg_bytes} bytes of arguments")
    items = block[0] * block[1] * block[2]
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
        scratch_stride=-(-d.scratch_bytes // 16) * 16,
        budget=budget,
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
    """Runs launches, one at a time, on one or more threads of workgroups."""

    def __init__(self, memory: Memory, threads: int, budget: int = BUDGET):
        self.memory, self.budget = memory, budget
        self.workers = [Worker() for _ in range(threads)]
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self.fixed = FixedBuffers(
            memory.allocate(KERNARG_BYTES, "kernarg segment"),
            memory.allocate(64, "dispatch packet"),
            memory.allocate(256, "queue"),
        )
        self._kernarg = memory.view(self.fixed.kernarg, 0, KERNARG_BYTES)
        self._packet = memory.view(self.fixed.packet, 0, 64)
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
        failed = [o for o in self._run(prepared, counts) if o.status]
        if failed:
            raise self._error(kernel, min(failed, key=lambda o: tuple(o.workgroup)[::-1]))
        executed = (counts.sum(axis=0).view(np.int64) @ kernel.class_matrix).tolist()
        prepared.instructions = sum(executed)
        return LaunchRecord(
            symbol=kernel.symbol,
            code_object_sha256=kernel.code_object_sha256,
            grid=tuple(grid),
            block=tuple(block),
            executed=dict(zip(kernel.class_names, executed, strict=True)),
        )

    def _prepare(self, kernel: EmulatedKernel, grid, block, dynamic_lds: int) -> Prepared:
        key = (id(kernel), grid, block, dynamic_lds)
        if key not in self._prepared:
            check_geometry(kernel, grid, block, dynamic_lds)
            lds = kernel.descriptor.lds_bytes + dynamic_lds
            fixed = self.fixed
            struct_ = _launch_struct(kernel, self.memory, fixed, grid, block, lds, self.budget)
            packet = aql_packet(kernel, grid, block, fixed.kernarg.address, lds)
            self._prepared[key] = Prepared(kernel, struct_, packet, len(self.workers))
        return self._prepared[key]

    def _run(self, prepared: Prepared, counts: np.ndarray) -> list[Outcome]:
        """Workgroups in turn over the threads; short launches stay on the caller's thread."""
        threads = min(len(self.workers), prepared.groups)
        if threads == 1 or prepared.instructions < THREADING_PAYS:
            return [self.workers[0].run(prepared.struct, counts[0], 0, 1)]
        jobs = [
            self.pool.submit(self.workers[t].run, prepared.struct, counts[t], t, threads)
            for t in range(1, threads)
        ]
        mine = self.workers[0].run(prepared.struct, counts[0], 0, threads)
        return [mine, *(job.result() for job in jobs)]

    def _error(self, kernel: EmulatedKernel, o: Outcome) -> DeviceFault:
        workgroup = tuple(o.workgroup)
        if o.status == layout.RUNAWAY:
            offset, text = kernel.compiled.sites[o.site]
            what, address, where = f"more than {self.budget} instructions in one wave", None, ""
        else:
            offset, text = kernel.compiled.sites[o.site]
            what, address = FAULTS[o.kind], o.address
            where = f" at 0x{address:x}"
            if o.kind in (layout.FAULT_GLOBAL_LOAD, layout.FAULT_GLOBAL_STORE):
                where += f", {self.memory.nearest(address)}"
        message = (
            f"{kernel.symbol}+0x{offset:x}: {text}: {what}{where} "
            f"(workgroup {workgroup}, wave {o.wave}, lane {o.lane})"
        )
        return DeviceFault(
            message,
            kernel=kernel.symbol,
            instruction=text,
            offset=offset,
            workgroup=workgroup,
            wave=o.wave,
            lane=o.lane,
            address=address,
        )
