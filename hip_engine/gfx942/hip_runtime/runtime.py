"""State of the emulated HIP runtime: the device, its allocations, handles, and the sticky fault."""

import bisect
import ctypes
import functools
import itertools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hip_engine.device import Buffer
from hip_engine.errors import DeviceFault
from hip_engine.gfx942.device import EmulatedDevice
from hip_engine.gfx942.memory import ARENA_BYTES
from hip_engine.gfx942.module import Module
from hip_engine.hip.errors import BY_NAME, CODES

HANDLERS: dict[str, tuple[Callable, int]] = {}
SANITIZE = "GFX942_SANITIZE"  # checks to run programs under: memory,init,race,waitcnt
DEVICE, HOST, MANAGED = "device", "host", "managed"


class HipFailure(Exception):
    """A call fails with this error; `reason` is shown after the standard text."""

    def __init__(self, name: str, reason: str):
        super().__init__(reason)
        self.code, self.reason = BY_NAME[name], reason


def api(function: Callable) -> Callable:
    """Register the handler of the exported call of the same name. Arguments are integers."""
    HANDLERS[function.__name__] = function, function.__code__.co_argcount - 1
    return function


def alias(*names: str) -> Callable:
    """Register further calls with the same parameters and meaning."""

    def register(function: Callable) -> Callable:
        for name in names:
            HANDLERS[name] = function, function.__code__.co_argcount - 1
        return function

    return register


def put(ctype, address: int, value) -> None:
    """Store a result through a pointer of the caller. Raises InvalidValue for a null one."""
    if not address:
        raise HipFailure("InvalidValue", "a null pointer where the result should go")
    ctype.from_address(address).value = value


put_pointer = put_size = functools.partial(put, ctypes.c_uint64)
put_int = functools.partial(put, ctypes.c_int32)


def get_text(address: int) -> str:
    if not address:
        raise HipFailure("InvalidValue", "a null pointer where a name should be")
    return ctypes.string_at(address).decode(errors="replace")


@dataclass(frozen=True)
class Allocation:
    buffer: Buffer
    kind: str
    flags: int = 0


class Handles:
    """Opaque pointers of one kind of object."""

    def __init__(self, what: str, numbers: itertools.count):
        self._what, self._numbers = what, numbers
        self._objects: dict[int, Any] = {}

    def add(self, thing) -> int:
        handle = next(self._numbers)
        self._objects[handle] = thing
        return handle

    def __getitem__(self, handle: int):
        if handle not in self._objects:
            raise HipFailure("InvalidHandle", f"0x{handle:x} is no {self._what}")
        return self._objects[handle]

    def __contains__(self, handle: int) -> bool:
        return handle in self._objects

    def values(self):
        return self._objects.values()

    def remove(self, handle: int):
        thing = self[handle]
        del self._objects[handle]
        return thing


@dataclass
class FatBinary:
    wrapper: int
    module: Module | None = None


@dataclass
class Registered:
    """What the constructors of compiled programs registered, by host address; outlives a reset."""

    binaries: dict[int, FatBinary] = field(default_factory=dict)
    functions: dict[int, tuple[int, str]] = field(default_factory=dict)
    variables: dict[int, tuple[int, str, int]] = field(default_factory=dict)
    managed: list[str] = field(default_factory=list)

    def afresh(self) -> "Registered":
        """The same registrations, nothing loaded."""
        binaries = {h: FatBinary(b.wrapper) for h, b in self.binaries.items()}
        return Registered(binaries, self.functions, self.variables, self.managed)


class Runtime:
    """One process's view of one emulated MI300X."""

    def __init__(self):
        self.registered = Registered()
        self._texts: dict[str, ctypes.Array] = {}  # what pointers were given out for; kept
        self.reset()

    def reset(self) -> None:
        """Forget memory, handles and the fault; registered kernels stay registered."""
        self.registered = self.registered.afresh()
        self.device = EmulatedDevice(sanitize=os.environ.get(SANITIZE, ""))
        numbers = itertools.count(0x4850_0000_0000, 16)
        self.streams = Handles("stream", numbers)
        self.events = Handles("event", numbers)
        self.modules = Handles("module", numbers)
        self.functions = Handles("function", numbers)
        self.graphs = Handles("graph", numbers)
        self.executables = Handles("executable graph", numbers)
        self.fault: HipFailure | None = None
        self._addresses: list[int] = []
        self._allocations: list[Allocation] = []
        self._reasons: dict[int, str] = {}

    # ---- Allocations

    @property
    def used_bytes(self) -> int:
        return sum(a.buffer.nbytes for a in self._allocations)

    def allocate(self, nbytes: int, kind: str, flags: int = 0) -> int:
        """Address of fresh memory; 0 for no bytes. Raises OutOfDeviceMemory."""
        if nbytes == 0:
            return 0
        if nbytes > ARENA_BYTES:
            raise HipFailure("OutOfMemory", f"{nbytes} bytes on a device of {ARENA_BYTES}")
        buffer = self.device.allocate(nbytes, f"{kind} memory {len(self._allocations)}")
        self.adopt(buffer, kind, flags)
        return buffer.address

    def adopt(self, buffer: Buffer, kind: str, flags: int = 0) -> None:
        position = bisect.bisect(self._addresses, buffer.address)
        self._addresses.insert(position, buffer.address)
        self._allocations.insert(position, Allocation(buffer, kind, flags))

    def free(self, address: int) -> None:
        if not address:
            return
        position = bisect.bisect_left(self._addresses, address)
        if position == len(self._addresses) or self._addresses[position] != address:
            raise HipFailure("InvalidValue", f"0x{address:x} is not the start of an allocation")
        self.device.free(self._allocations[position].buffer)
        del self._addresses[position], self._allocations[position]

    def find(self, address: int) -> Allocation | None:
        """The allocation that holds this address."""
        position = bisect.bisect_right(self._addresses, address) - 1
        if position >= 0:
            found = self._allocations[position]
            if address < found.buffer.address + found.buffer.nbytes:
                return found
        return None

    def require(self, address: int, nbytes: int) -> tuple[Buffer, int]:
        """The buffer of a range and the offset in it. Raises InvalidValue if it is not one."""
        found = self.find(address)
        if not found:
            near = self.device.memory.nearest(address) if address else "the null pointer"
            raise HipFailure("InvalidValue", f"0x{address:x} is no device memory: {near}")
        buffer, offset = found.buffer, address - found.buffer.address
        if offset + nbytes > buffer.nbytes:
            raise HipFailure(
                "InvalidValue",
                f"bytes {offset} to {offset + nbytes} of {buffer.label}, which has {buffer.nbytes}",
            )
        return buffer, offset

    def read(self, address: int, nbytes: int) -> bytes:
        buffer, offset = self.require(address, nbytes)
        return self.device.read(buffer, np.uint8, nbytes, offset).tobytes()

    def write(self, address: int, data: bytes) -> None:
        buffer, offset = self.require(address, len(data))
        self.device.write(buffer, np.frombuffer(data, np.uint8), offset)

    # ---- Errors

    def require_no_fault(self) -> None:
        """A fault of an earlier kernel is the result of all work until hipDeviceReset."""
        if self.fault:
            raise self.fault

    def record_fault(self, error: DeviceFault) -> None:
        """Keep the first fault and print it once, as the driver does."""
        name = "LaunchFailure" if error.address is None else "IllegalAddress"
        self.fault = HipFailure(name, str(error))
        print(f"libamdhip64 (emulated gfx942): {error}", file=sys.stderr, flush=True)

    def explain(self, code: int, reason: str) -> None:
        self._reasons[code] = reason

    def text(self, string: str) -> int:
        """Address of a C string that stays valid."""
        if string not in self._texts:
            self._texts[string] = ctypes.create_string_buffer(string.encode())
        return ctypes.addressof(self._texts[string])

    def error_text(self, code: int) -> str:
        """The standard text, and why the last call that failed with this code did."""
        if code == 0:
            return "no error"
        if code not in CODES:
            return f"unrecognized error code {code}"
        reason = self._reasons.get(code)
        return CODES[code].text + (f": {reason}" if reason else "")
