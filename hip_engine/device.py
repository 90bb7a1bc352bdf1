"""What the engine asks of a device, whether it is an MI300X or an emulated one."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np


@dataclass(frozen=True)
class Buffer:
    """A device allocation: its address, size, and the label that errors and attestations show."""

    address: int
    nbytes: int
    label: str


class Traffic(NamedTuple):
    """Bytes of a buffer that a launch moved; `read_wide`: by 16-byte lane loads.

    `lines`: 128-byte lines that loads touched, counted load by load.
    """

    read: int
    written: int
    read_wide: int
    lines: int


@dataclass(frozen=True)
class MemoryCounts:
    """What the vector memory and LDS instructions of a launch did (emulated device only).

    `load_lines` counts distinct 128-byte lines instruction by instruction; `load_wide_bytes` are
    bytes that 16-byte lane loads fetched. `lds_passes` counts passes over the 32 banks, half a
    wave at a time, so passes above 2 an access are conflicts. `flight_peak` is the most vector
    memory instructions one wave had in flight.
    """

    loads: int
    load_bytes: int
    load_lines: int
    load_wide_bytes: int
    stores: int
    store_bytes: int
    lds_accesses: int
    lds_passes: int
    flight_peak: int
    by_buffer: dict[Buffer, Traffic]


@dataclass(frozen=True)
class LaunchRecord:
    """What one launch executed, for attestation.

    `kernarg`: the arguments' bytes, as the kernel found them. `executed` counts wave instructions
    by class ("valu", "salu", "mfma", "vmem_load", ...) where the device can see them (the emulated
    one can), and is empty where it cannot; `mfma` counts those of each shape ("f32_16x16x16_f16").
    `blocks`: byte offset of a basic block from the kernel's entry -> waves that ran it; only with
    counters.
    """

    symbol: str
    code_object_sha256: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    kernarg: bytes = field(default=b"", repr=False, compare=False)
    executed: dict[str, int] = field(default_factory=dict)
    mfma: dict[str, int] = field(default_factory=dict)
    memory: MemoryCounts | None = None
    blocks: dict[int, int] = field(default_factory=dict)


class AccessLog(Protocol):
    """Exact read and write sets of the launches made inside `Device.watch`."""

    def written(self, buffer: Buffer) -> np.ndarray:
        """One bool for each byte of `buffer`: a kernel stored to it (whatever value it stored)."""

    def read(self, buffer: Buffer) -> np.ndarray:
        """One bool for each byte of `buffer`: a kernel loaded it."""


class Event(Protocol):
    """A place in a stream's order, to be waited for."""

    def record(self, stream: "Stream") -> None: ...

    def synchronize(self) -> None:
        """Waits until what the stream had been given by then is done."""

    def close(self) -> None: ...


class Pinned(Protocol):
    """Host memory that the device copies to while the host goes on; `array` is a view of it."""

    array: np.ndarray

    def close(self) -> None: ...


class Graph(Protocol):
    """Launches that were captured, to be made again any number of times by one call.

    Arguments are as they were captured; what they point to is read when the graph runs.
    """

    def __len__(self) -> int:
        """Launches in it."""

    def launch(self, stream: "Stream") -> Sequence[LaunchRecord]: ...

    def close(self) -> None: ...


class Capture(Protocol):
    """A `with` block inside which launches of a stream are captured and not made."""

    graph: Graph

    def __enter__(self) -> "Capture": ...

    def __exit__(self, kind, error, trace) -> None: ...


class Stream(Protocol):
    """Work that runs in order, and in order with the reads and writes of the device."""

    def capture(self) -> Capture: ...

    def wait(self, event: Event) -> None:
        """Later work of this stream starts after what `event` recorded."""

    def read_later(self, buffer: Buffer, into: np.ndarray, offset_bytes: int = 0) -> None:
        """Fills `into`, a part of a Pinned array, when the stream comes to it."""

    def synchronize(self) -> None: ...

    def close(self) -> None: ...


class Kernel(Protocol):
    """A kernel of a loaded code object; `arguments`: (name, offset, size, kind) by its metadata."""

    symbol: str
    code_object_sha256: str
    arguments: Sequence[tuple[str, int, int, str]]


class Device(Protocol):
    """Memory and launches. Kernels take Buffer, int (addresses too), float or np scalars.

    `reports_accesses`: whether `watch` can tell what kernels touched.
    `busy_s`: seconds that calls spent executing kernels; 0 where kernels run by themselves.
    """

    name: str
    reports_accesses: bool
    busy_s: float

    def allocate(self, nbytes: int, label: str) -> Buffer: ...

    def free(self, buffer: Buffer) -> None: ...

    def write(self, buffer: Buffer, array: np.ndarray, offset_bytes: int = 0) -> None: ...

    def read(
        self, buffer: Buffer, dtype: np.dtype, count: int, offset_bytes: int = 0
    ) -> np.ndarray: ...

    def load(self, code_object: bytes) -> dict[str, Kernel]: ...

    def open(self, code_object: bytes) -> Mapping[str, Kernel]:
        """As `load`, where a kernel is made ready when it is first asked for."""

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: Sequence,
        dynamic_lds_bytes: int = 0,
        stream: Stream | None = None,
    ) -> LaunchRecord: ...

    def stream(self) -> Stream: ...

    def event(self) -> Event: ...

    def pinned(self, count: int, dtype: np.dtype) -> Pinned: ...

    def synchronize(self) -> None: ...

    def watch(self, buffers: Sequence[Buffer] | None = None) -> AbstractContextManager[AccessLog]:
        """Logs what kernels read and write inside the `with`, of `buffers` or of all memory."""


def open_device(name: str) -> Device:
    """Open "emulated" (a gfx942 on this CPU) or "mi300x" (through the HIP runtime).

    Raises:
      DeviceUnavailable: unknown name, or no HIP runtime or MI300X on this machine.
    """
    from hip_engine.errors import DeviceUnavailable

    if name == "emulated":
        from hip_engine.gfx942.device import EmulatedDevice

        return EmulatedDevice()
    if name == "mi300x":
        from hip_engine.hip.device import HipDevice

        return HipDevice()
    raise DeviceUnavailable(f"unknown device {name!r}: use emulated or mi300x")
