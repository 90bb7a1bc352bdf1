"""Streams and events. Work runs when it is enqueued, or is recorded while a stream captures."""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from hip_engine.gfx942.hip_runtime.runtime import (
    HipFailure,
    Runtime,
    alias,
    api,
    put,
    put_int,
    put_pointer,
)

NULL_STREAM, LEGACY_STREAM, PER_THREAD_STREAM = 0, 1, 2
NON_BLOCKING = 1
RELAXED = 2  # hipStreamCaptureModeRelaxed
DISABLE_TIMING = 2
HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
STREAM_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


@dataclass
class Capture:
    """Work recorded between BeginCapture and EndCapture, in an order that honours every wait."""

    origin: "Stream"
    mode: int
    work: list[Callable[[], None]] = field(default_factory=list)
    members: list["Stream"] = field(default_factory=list)
    invalid: bool = False


@dataclass(eq=False)
class Stream:
    """`position` counts captured work; `reached`: how much of each member's precedes this one."""

    flags: int = 0
    priority: int = 0
    capture: Capture | None = None
    position: int = 0
    reached: dict["Stream", int] = field(default_factory=dict)

    def join(self, capture: Capture) -> None:
        self.capture, self.position, self.reached = capture, 0, {}
        capture.members.append(self)


@dataclass
class Event:
    """The time of the last record, or the place in a capture that it marks."""

    flags: int = 0
    recorded_s: float | None = None
    capture: Capture | None = None
    reached: dict[Stream, int] = field(default_factory=dict)


def stream_of(hip: Runtime, handle: int) -> Stream | None:
    """None for the null stream and its names."""
    return (
        None if handle in (NULL_STREAM, LEGACY_STREAM, PER_THREAD_STREAM) else hip.streams[handle]
    )


def enqueue(hip: Runtime, handle: int, work: Callable[[], None]) -> None:
    """Run `work` in its stream's order: now, or record it if the stream captures."""
    stream = stream_of(hip, handle)
    if stream is None or stream.capture is None:
        if stream is None:
            _refuse_implicit_dependency(hip)
        hip.require_no_fault()
        work()
        return
    if stream.capture.invalid:
        raise HipFailure("StreamCaptureInvalidated", "an earlier call of this capture failed")
    stream.capture.work.append(work)
    stream.position += 1


def _refuse_implicit_dependency(hip: Runtime) -> None:
    """Work of the null stream would order itself against every blocking stream that captures."""
    for stream in hip.streams.values():
        if stream.capture and not stream.flags & NON_BLOCKING and stream.capture.mode != RELAXED:
            stream.capture.invalid = True
            raise HipFailure("StreamCaptureImplicit", "work on the null stream during a capture")


def synchronous(hip: Runtime) -> None:
    """A call that may wait for the device: not allowed while a stream captures."""
    for stream in hip.streams.values():
        if stream.capture and stream.capture.mode != RELAXED:
            stream.capture.invalid = True
            raise HipFailure("StreamCaptureUnsupported", "this call may wait, a stream captures")


@api
def hipDeviceSynchronize(hip: Runtime):
    synchronous(hip)
    hip.require_no_fault()


@api
def hipDeviceReset(hip: Runtime):
    hip.reset()


@api
def hipStreamCreate(hip: Runtime, stream: int):
    put_pointer(stream, hip.streams.add(Stream()))


@api
def hipStreamCreateWithFlags(hip: Runtime, stream: int, flags: int):
    hipStreamCreateWithPriority(hip, stream, flags, 0)


@api
def hipStreamCreateWithPriority(hip: Runtime, stream: int, flags: int, priority: int):
    if flags not in (0, NON_BLOCKING):
        raise HipFailure("InvalidValue", f"stream flags {flags}")
    put_pointer(stream, hip.streams.add(Stream(flags, ctypes.c_int32(priority).value)))


@api
def hipStreamDestroy(hip: Runtime, stream: int):
    hip.streams.remove(stream)


@api
def hipStreamSynchronize(hip: Runtime, handle: int):
    stream = stream_of(hip, handle)
    if stream and stream.capture:
        stream.capture.invalid = True
        raise HipFailure("StreamCaptureUnsupported", "the stream captures")
    hip.require_no_fault()


@api
def hipStreamQuery(hip: Runtime, handle: int):
    """Success: everything enqueued is done."""
    hipStreamSynchronize(hip, handle)


@api
def hipStreamGetFlags(hip: Runtime, handle: int, flags: int):
    stream = stream_of(hip, handle)
    put_int(flags, stream.flags if stream else 0)


@api
def hipStreamGetPriority(hip: Runtime, handle: int, priority: int):
    stream = stream_of(hip, handle)
    put_int(priority, stream.priority if stream else 0)


@api
def hipStreamGetDevice(hip: Runtime, handle: int, device: int):
    stream_of(hip, handle)
    put_int(device, 0)


@api
def hipStreamWaitEvent(hip: Runtime, handle: int, event: int, flags: int):
    """Everything recorded is done; in a capture the wait joins streams and orders their work."""
    stream, marked = stream_of(hip, handle), hip.events[event]
    if marked.capture is None:
        if stream and stream.capture:
            stream.capture.invalid = True
            raise HipFailure("StreamCaptureIsolation", "an event that the capture did not record")
        return
    if stream is None:
        raise HipFailure("StreamCaptureImplicit", "the null stream waits for a capture")
    if stream.capture is None:
        stream.join(marked.capture)
    elif stream.capture is not marked.capture:
        stream.capture.invalid = True
        raise HipFailure("StreamCaptureMerge", "an event of another capture")
    for member, position in marked.reached.items():
        stream.reached[member] = max(position, stream.reached.get(member, 0))


@api
def hipLaunchHostFunc(hip: Runtime, stream: int, function: int, data: int):
    if not function:
        raise HipFailure("InvalidValue", "a null host function")
    enqueue(hip, stream, lambda: HOST_FUNCTION(function)(data))


@api
def hipStreamAddCallback(hip: Runtime, stream: int, callback: int, data: int, flags: int):
    if not callback or flags:
        raise HipFailure("InvalidValue", "a null callback, or flags that must be 0")
    enqueue(hip, stream, lambda: STREAM_CALLBACK(callback)(stream, 0, data))


@api
def hipEventCreate(hip: Runtime, event: int):
    put_pointer(event, hip.events.add(Event()))


@api
def hipEventCreateWithFlags(hip: Runtime, event: int, flags: int):
    put_pointer(event, hip.events.add(Event(flags)))


@api
def hipEventDestroy(hip: Runtime, event: int):
    hip.events.remove(event)


@api
def hipEventRecord(hip: Runtime, event: int, handle: int):
    marked, stream = hip.events[event], stream_of(hip, handle)
    if stream and stream.capture:
        marked.capture = stream.capture
        marked.reached = {**stream.reached, stream: stream.position}
    else:
        hip.require_no_fault()
        marked.recorded_s, marked.capture = time.perf_counter(), None


@api
def hipEventRecordWithFlags(hip: Runtime, event: int, stream: int, flags: int):
    hipEventRecord(hip, event, stream)


@api
@alias("hipEventQuery")
def hipEventSynchronize(hip: Runtime, event: int):
    if hip.events[event].capture:
        raise HipFailure("CapturedEvent", "the event marks a place in a capture, not a time")
    hip.require_no_fault()


@api
def hipEventElapsedTime(hip: Runtime, milliseconds: int, begin: int, end: int):
    """Wall time of the emulation between two records: no time of an MI300X."""
    events = hip.events[begin], hip.events[end]
    if any(e.capture or e.recorded_s is None or e.flags & DISABLE_TIMING for e in events):
        raise HipFailure("InvalidHandle", "an event that was not recorded, or without timing")
    elapsed_ms = 1e3 * (events[1].recorded_s - events[0].recorded_s)
    put(ctypes.c_float, milliseconds, elapsed_ms)
