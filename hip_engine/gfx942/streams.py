"""Streams, events and graphs of the emulated device, where work is done when it is enqueued."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hip_engine.device import Buffer, LaunchRecord
from hip_engine.errors import LaunchError
from hip_engine.gfx942.arguments import check_geometry, pack_arguments


class CapturedLaunch(NamedTuple):
    """A launch with its arguments by value; `kernel` is an EmulatedKernel."""

    kernel: object
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    kernarg: bytes
    dynamic_lds_bytes: int


class EmulatedEvent:
    """Nothing is ever pending, so there is nothing to wait for."""

    def record(self, stream: "EmulatedStream") -> None:
        _refuse_while_capturing(stream, "an event is recorded")

    def synchronize(self) -> None:
        """Work is done when it is enqueued."""

    def close(self) -> None:
        """Nothing is held."""


class EmulatedPinned:
    """Host memory; the device copies to any."""

    def __init__(self, count: int, dtype):
        self.array = np.zeros(count, dtype)

    def close(self) -> None:
        """The array goes when nobody holds it."""


class EmulatedGraph:
    """Captured launches, made in order; arguments are as they were captured."""

    def __init__(self, device, launches: Sequence[CapturedLaunch]):
        self._device, self._launches = device, tuple(launches)

    def __len__(self) -> int:
        return len(self._launches)

    def launch(self, stream: "EmulatedStream") -> tuple[LaunchRecord, ...]:
        _refuse_while_capturing(stream, "a graph is launched")
        return tuple(self._device.launch(*launch) for launch in self._launches)

    def close(self) -> None:
        self._launches = ()


class EmulatedCapture:
    """Launches of the stream inside the `with` are listed; `graph` is there after it."""

    def __init__(self, stream: "EmulatedStream"):
        self._stream = stream
        self.graph: EmulatedGraph | None = None

    def __enter__(self) -> "EmulatedCapture":
        _refuse_while_capturing(self._stream, "another capture begins")
        self._stream.captured = []
        return self

    def __exit__(self, kind, error, trace) -> None:
        captured, self._stream.captured = self._stream.captured, None
        if kind is None:
            self.graph = EmulatedGraph(self._stream.device, captured)


class EmulatedStream:
    """A stream of an EmulatedDevice."""

    def __init__(self, device):
        self.device = device
        self.captured: list[CapturedLaunch] | None = None

    @property
    def captures(self) -> bool:
        return self.captured is not None

    def add(self, kernel, grid, block, args, dynamic_lds_bytes: int) -> LaunchRecord:
        """Captures a launch. Raises LaunchError as the launch itself would."""
        grid, block = tuple(grid), tuple(block)
        check_geometry(kernel, grid, block, dynamic_lds_bytes)
        kernarg = bytes(pack_arguments(kernel, args, grid, block, dynamic_lds_bytes))
        self.captured.append(CapturedLaunch(kernel, grid, block, kernarg, dynamic_lds_bytes))
        return LaunchRecord(kernel.symbol, kernel.code_object_sha256, grid, block, kernarg)

    def capture(self) -> EmulatedCapture:
        return EmulatedCapture(self)

    def wait(self, event: EmulatedEvent) -> None:
        """Work of every stream is done when it is enqueued."""

    def read_later(self, buffer: Buffer, into: np.ndarray, offset_bytes: int = 0) -> None:
        _refuse_while_capturing(self, "the host reads")
        into[:] = self.device.read(buffer, into.dtype, into.size, offset_bytes)

    def synchronize(self) -> None:
        _refuse_while_capturing(self, "the host waits")

    def close(self) -> None:
        """Nothing is held."""


def _refuse_while_capturing(stream: EmulatedStream, what: str) -> None:
    """As on the hardware, where these calls end a capture with an error."""
    if stream is not None and stream.captures:
        raise LaunchError(f"{what} while the stream captures")
