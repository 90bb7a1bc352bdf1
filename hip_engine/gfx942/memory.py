"""Device memory of the emulated MI300X: one reserved range of this process, with allocations.

A device address is a host address inside the range. Allocations are separated by guard zones, so
that an access past one of them is an access to none. A second range of the same size holds one log
byte per byte: read and written while an access log is open, and defined under the init sanitizer.
"""

import bisect
import ctypes
import mmap
from collections.abc import Sequence

import numpy as np

from hip_engine.device import Buffer
from hip_engine.errors import LaunchError, OutOfDeviceMemory, SanitizerError
from hip_engine.gfx942.layout import ARENA_BYTES

MAP_NORESERVE = 0x4000
GUARD_BYTES = 1 << 16
ALIGNMENT = 1 << 12
READ_BIT, WRITTEN_BIT, DEFINED_BIT = 1, 2, 4
TOUCH_BYTES = 8  # a race record, one a byte


class MemoryTable(ctypes.Structure):
    """Mirror of the runtime's Memory."""

    _fields_ = [
        ("count", ctypes.c_uint64),
        ("begin", ctypes.c_void_p),
        ("end", ctypes.c_void_p),
        ("watched", ctypes.c_uint64),
        ("watched_bytes", ctypes.c_uint64),
        ("shadow", ctypes.c_int64),
        ("base", ctypes.c_uint64),
        ("touched", ctypes.c_uint64),
    ]


def _reserve(nbytes: int) -> mmap.mmap:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    return mmap.mmap(-1, nbytes, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _overlap(a: Buffer, b: Buffer) -> bool:
    return a.address < b.address + b.nbytes and b.address < a.address + a.nbytes


class Memory:
    """Allocates, frees, reads and writes device memory."""

    def __init__(self, definedness: bool = False, races: bool = False, keep_freed: bool = False):
        self._definedness, self._keep_freed = definedness, keep_freed
        self._arena = _reserve(ARENA_BYTES)
        self._shadow = _reserve(ARENA_BYTES)
        self._bytes = np.frombuffer(self._arena, np.uint8)
        self._log = np.frombuffer(self._shadow, np.uint8)
        self.base = self._bytes.ctypes.data
        self.table = MemoryTable(shadow=self._log.ctypes.data - self.base, base=self.base)
        if races:
            self._touched = _reserve(TOUCH_BYTES * ARENA_BYTES)
            self.table.touched = np.frombuffer(self._touched, np.uint8).ctypes.data
        self._freed: list[Buffer] = []
        self._buffers: list[Buffer] = []  # by address
        self._begins: list[int] = []
        self._publish()

    def _publish(self) -> None:
        """Rebuild the table that the runtime searches; no launch is under way."""
        self._begin = np.array(self._begins, np.uint64)
        self._end = np.array([b.address + b.nbytes for b in self._buffers], np.uint64)
        self.table.begin, self.table.end = self._begin.ctypes.data, self._end.ctypes.data
        self.table.count = len(self._buffers)

    def allocate(self, nbytes: int, label: str) -> Buffer:
        """First fit between live allocations, zero-filled. Under the memory sanitizer freed ranges
        are used again only when nothing else is left, so that late accesses meet no new owner.

        Raises:
          OutOfDeviceMemory: no gap is large enough; nothing is changed.
        """
        if nbytes <= 0:
            raise LaunchError(
                f"allocation of {nbytes} bytes for {label}: the size must be positive"
            )
        start = self._gap(nbytes, [*self._buffers, *self._freed]) if self._keep_freed else None
        start = start or self._gap(nbytes, self._buffers)
        if not start:
            raise OutOfDeviceMemory(f"{nbytes} bytes for {label} do not fit in {ARENA_BYTES} bytes")
        fresh = Buffer(start, nbytes, label)
        self._freed = [f for f in self._freed if not _overlap(f, fresh)]
        position = bisect.bisect_left(self._begins, start)
        self._buffers.insert(position, fresh)
        self._begins.insert(position, start)
        self._publish()
        return fresh

    def _gap(self, nbytes: int, taken: list[Buffer]) -> int | None:
        """The first address with room for guarded `nbytes` between the buffers of `taken`."""
        start = self.base + GUARD_BYTES
        for buffer in sorted(taken, key=lambda b: b.address):
            if start + nbytes + GUARD_BYTES <= buffer.address:
                return start
            end = buffer.address + buffer.nbytes + GUARD_BYTES
            start = max(start, -(-end // ALIGNMENT) * ALIGNMENT)
        return start if start + nbytes + GUARD_BYTES <= self.base + ARENA_BYTES else None

    @property
    def buffers(self) -> list[Buffer]:
        """Live allocations, by address."""
        return self._buffers

    def free(self, buffer: Buffer) -> None:
        position = self._position(buffer)
        del self._buffers[position], self._begins[position]
        self._freed.append(buffer)
        begin = buffer.address - self.base
        if self._definedness:
            self._log[begin : begin + buffer.nbytes] = 0
        end = begin + buffer.nbytes
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        last = end // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:  # whole pages go back to the system and come again as zeros
            self._arena.madvise(mmap.MADV_DONTNEED, first, last - first)
        else:
            first = last = end
        self._bytes[begin:first] = 0
        self._bytes[last:end] = 0
        self._publish()

    def _position(self, buffer: Buffer) -> int:
        position = bisect.bisect_left(self._begins, buffer.address)
        if position == len(self._buffers) or self._buffers[position] != buffer:
            raise LaunchError(f"{buffer.label}: not a live allocation (freed twice?)")
        return position

    def span(self, buffer: Buffer, offset: int, nbytes: int) -> slice:
        """Slice of the arena for a host access, checked against the buffer."""
        self._position(buffer)
        if offset < 0 or nbytes < 0 or offset + nbytes > buffer.nbytes:
            raise LaunchError(
                f"host access to bytes {offset} to {offset + nbytes} of {buffer.label}, "
                f"which has {buffer.nbytes}"
            )
        begin = buffer.address - self.base + offset
        return slice(begin, begin + nbytes)

    def view(self, buffer: Buffer, offset: int, nbytes: int) -> np.ndarray:
        return self._bytes[self.span(buffer, offset, nbytes)]

    def define(self, buffer: Buffer, offset: int, nbytes: int) -> None:
        """The host wrote these bytes (init sanitizer)."""
        if self._definedness:
            self._log[self.span(buffer, offset, nbytes)] |= DEFINED_BIT

    def check_defined(self, buffer: Buffer, offset: int, nbytes: int) -> None:
        """Under the init sanitizer, refuse a host read of bytes that nobody wrote.

        Raises:
          SanitizerError: with the first such byte.
        """
        if self._definedness:
            missing = (self._log[self.span(buffer, offset, nbytes)] & DEFINED_BIT) == 0
            if missing.any():
                first = offset + int(missing.argmax())
                raise SanitizerError(
                    f"init: the host reads byte {first} of {buffer.label} (0x{buffer.address:x}), "
                    f"which nothing has written ({int(missing.sum())} such bytes in this read)"
                )

    def log(self, buffer: Buffer) -> np.ndarray:
        return self._log[self.span(buffer, 0, buffer.nbytes)]

    def watch(self, buffers: Sequence[Buffer] | None) -> None:
        """Log accesses from now on: to these and what lies between them, or to all memory."""
        self.clear_log()
        if buffers is None:
            self.table.watched, self.table.watched_bytes = self.base, ARENA_BYTES
        else:
            begin = min(b.address for b in buffers)
            end = max(b.address + b.nbytes for b in buffers)
            self.table.watched, self.table.watched_bytes = begin, end - begin

    def unwatch(self) -> None:
        self.table.watched_bytes = 0

    def clear_log(self) -> None:
        """Forget every logged access, keep what is defined."""
        if self._definedness:
            for buffer in self._buffers:
                self._log[self.span(buffer, 0, buffer.nbytes)] &= DEFINED_BIT
        else:  # the pages go back to the system
            self._shadow.madvise(mmap.MADV_DONTNEED)

    def nearest(self, address: int) -> str:
        """Where an address lies relative to the nearest live allocation, in words."""
        for freed in reversed(self._freed):
            if freed.address <= address < freed.address + freed.nbytes:
                where = f"(0x{freed.address:x}, {freed.nbytes} bytes)"
                return f"at byte {address - freed.address} of {freed.label} {where}, freed earlier"
        if not self._buffers:
            return "nothing is allocated"

        def distance(b: Buffer) -> int:
            return max(b.address - address, address - (b.address + b.nbytes) + 1, 0)

        position = bisect.bisect_right(self._begins, address)
        near = min(self._buffers[max(0, position - 1) : position + 1], key=distance)
        if distance(near) > ARENA_BYTES:
            return "no allocation is near"
        if address < near.address:
            place = f"{near.address - address} bytes before"
        elif address >= near.address + near.nbytes:
            place = f"{address - near.address - near.nbytes} bytes past the end of"
        else:
            place = f"at byte {address - near.address} of"
        return f"{place} {near.label} (0x{near.address:x}, {near.nbytes} bytes)"
