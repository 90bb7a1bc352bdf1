"""Streams, events and graphs of the HIP runtime, each freed when its `with` block ends."""

import ctypes
from collections.abc import Callable
from ctypes import byref, c_float, c_void_p

import numpy as np

from hip_engine.device import Buffer, LaunchRecord
from hip_engine.hip import errors
from hip_engine.hip.library import Hip

BLOCKING = 0  # in order with hipMemcpy, which uses the null stream
CAPTURE_GLOBAL = 0
DEVICE_TO_HOST = 2


class Handle:
    """A handle that one call made and another destroys."""

    def __init__(self, hip: Hip, handle: c_void_p, destroy: str):
        self.hip, self.handle, self._destroy = hip, handle, destroy

    def close(self) -> None:
        if self.handle:
            handle, self.handle = self.handle, None
            self.hip.call(self._destroy, handle)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Pinned(Handle):
    """Zeros at first. Freed by `close` only: the runtime allows no call during a capture."""

    def __init__(self, hip: Hip, count: int, dtype):
        nbytes = max(count * np.dtype(dtype).itemsize, 1)
        made = hip.make("hipHostMalloc", nbytes, 0, context=f"{nbytes} bytes of pinned memory")
        super().__init__(hip, made, "hipHostFree")
        raw = (ctypes.c_char * nbytes).from_address(made.value)
        self.array = np.frombuffer(raw, dtype, count)
        self.array[:] = 0

    def close(self) -> None:
        self.array = self.array[:0]
        super().close()


class Event(Handle):
    def __init__(self, hip: Hip):
        super().__init__(hip, hip.make("hipEventCreate"), "hipEventDestroy")

    def record(self, stream: "Stream | None" = None) -> None:
        self.hip.call("hipEventRecord", self.handle, handle_of(stream))

    def synchronize(self) -> None:
        self.hip.call("hipEventSynchronize", self.handle)

    def elapsed_ms(self, begin: "Event") -> float:
        """Time since `begin`; both must be recorded and done."""
        elapsed = c_float()
        self.hip.call("hipEventElapsedTime", byref(elapsed), begin.handle, self.handle)
        return elapsed.value


class Graph(Handle):
    """An executable graph, and the records of its launches."""

    def __init__(self, hip: Hip, handle: c_void_p, records: tuple[LaunchRecord, ...]):
        super().__init__(hip, handle, "hipGraphExecDestroy")
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def launch(self, stream: "Stream") -> tuple[LaunchRecord, ...]:
        self.hip.call("hipGraphLaunch", self.handle, stream.handle)
        return self._records


class Capture:
    """Work enqueued on the stream inside the `with` is recorded; `graph` is there after it."""

    def __init__(self, stream: "Stream"):
        self._stream, self.graph = stream, None

    def __enter__(self) -> "Capture":
        self._stream.hip.call("hipStreamBeginCapture", self._stream.handle, CAPTURE_GLOBAL)
        self._stream.captured = []
        return self

    def __exit__(self, kind, error, trace) -> None:
        hip, records = self._stream.hip, tuple(self._stream.captured)
        self._stream.captured = None
        recorded = c_void_p()
        status = hip.status("hipStreamEndCapture", self._stream.handle, byref(recorded))
        if kind is not None:
            if recorded:
                hip.status("hipGraphDestroy", recorded)
            return
        if status != errors.SUCCESS:
            raise errors.error("hipStreamEndCapture", status, hip.text(status))
        try:
            made = hip.make("hipGraphInstantiate", recorded, None, None, 0)
        finally:
            hip.call("hipGraphDestroy", recorded)
        self.graph = Graph(hip, made, records)


class Stream(Handle):
    """Work enqueued here runs in order, beside that of other streams.

    It is in order with the device's own reads and writes too. `address_of(buffer, offset, nbytes)`
    checks a range. `captured`: records of the launches of the capture under way.
    """

    def __init__(self, hip: Hip, address_of: Callable[[Buffer, int, int], int]):
        made = hip.make("hipStreamCreateWithFlags", BLOCKING)
        super().__init__(hip, made, "hipStreamDestroy")
        self._address_of = address_of
        self.captured: list[LaunchRecord] | None = None

    def synchronize(self) -> None:
        self.hip.call("hipStreamSynchronize", self.handle)

    @property
    def idle(self) -> bool:
        """Whether everything enqueued so far is done."""
        status = self.hip.status("hipStreamQuery", self.handle)
        if status not in (errors.SUCCESS, errors.NOT_READY):
            raise errors.error("hipStreamQuery", status, self.hip.text(status))
        return status == errors.SUCCESS

    def wait(self, event: Event) -> None:
        """Later work of this stream starts after what `event` recorded."""
        self.hip.call("hipStreamWaitEvent", self.handle, event.handle, 0)

    def capture(self) -> Capture:
        return Capture(self)

    def read_later(self, buffer: Buffer, into: np.ndarray, offset_bytes: int = 0) -> None:
        """Copies to `into` when the stream comes to it; only pinned memory lets the host go on."""
        source = self._address_of(buffer, offset_bytes, into.nbytes)
        copy = (into.ctypes.data, source, into.nbytes, DEVICE_TO_HOST, self.handle)
        self.hip.call("hipMemcpyAsync", *copy, context=buffer.label)


def handle_of(stream: Stream | None) -> ctypes.c_void_p | None:
    return stream.handle if stream else None
