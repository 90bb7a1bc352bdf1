"""Streams, events and graphs: order, capture, and replay with the arguments as captured."""

import numpy as np
import pytest

from hip_engine.hip import errors

ONE = (1, 1, 1)
WAVE = (64, 1, 1)


@pytest.fixture
def append(mi300x, kernels):
    """append(value, stream) adds to a log on the device; append.log() reads it."""
    kernel = mi300x.load(kernels)["append"]
    log = mi300x.allocate(256, "log")

    def append(value, stream=None):
        mi300x.launch(kernel, ONE, WAVE, (log, value), stream=stream)

    def read():
        entries = mi300x.read(log, np.int32, 64)
        return entries[1 : 1 + entries[0]].tolist()

    append.buffer, append.log = log, read
    return append


def refused(name):
    return pytest.raises(errors.type_of(errors.BY_NAME[name]))


def test_a_stream_runs_its_work_in_order(mi300x, append):
    with mi300x.stream() as stream:
        for value in (3, 1, 2):
            append(value, stream)
        stream.synchronize()
        assert stream.idle
    assert append.log() == [3, 1, 2]


def test_events_order_streams_and_tell_the_time_between_them(mi300x, append):
    with mi300x.stream() as first, mi300x.stream() as second:
        with mi300x.event() as begin, mi300x.event() as end:
            begin.record(first)
            append(1, first)
            end.record(first)
            second.wait(end)
            append(2, second)
            end.synchronize()
            assert end.elapsed_ms(begin) > 0
    assert append.log() == [1, 2]


def test_an_event_that_was_never_recorded_has_no_time(mi300x):
    with mi300x.event() as begin, mi300x.event() as end, refused("InvalidHandle"):
        end.elapsed_ms(begin)


def test_captured_work_runs_only_when_the_graph_is_launched(mi300x, append):
    with mi300x.stream() as stream:
        with stream.capture() as capture:
            append(7, stream)
            append(8, stream)
        assert append.log() == []
        with capture.graph as graph:
            graph.launch(stream)
            graph.launch(stream)
    assert append.log() == [7, 8, 7, 8]


def test_a_graph_keeps_arguments_by_value_and_reads_memory_when_it_runs(mi300x, kernels):
    kernel = mi300x.load(kernels)["add"]
    numbers = mi300x.allocate(256, "numbers")
    amount = 5
    with mi300x.stream() as stream:
        with stream.capture() as capture:
            mi300x.launch(kernel, ONE, WAVE, (numbers, amount), stream=stream)
        amount = 1000
        mi300x.write(numbers, np.full(64, 10, np.int32))
        with capture.graph as graph:
            graph.launch(stream)
            mi300x.fill(numbers, 0)
            graph.launch(stream)
    assert mi300x.read(numbers, np.int32, 64).tolist() == [amount - 995] * 64


def test_a_graph_replays_copies_from_host_memory_as_it_is_then(mi300x):
    host, numbers = np.zeros(4, np.int32), mi300x.allocate(16, "numbers")
    with mi300x.stream() as stream:
        copy = (numbers.address, host.ctypes.data, 16, 1, stream.handle)
        with stream.capture() as capture:
            mi300x.hip.call("hipMemcpyAsync", *copy)
        with capture.graph as graph:
            host[:] = 9
            graph.launch(stream)
    assert mi300x.read(numbers, np.int32, 4).tolist() == [9] * 4


def test_a_capture_spans_streams_that_an_event_joins(mi300x, append):
    with mi300x.stream() as origin, mi300x.stream() as other, mi300x.event() as fork:
        with mi300x.event() as join:
            with origin.capture() as capture:
                append(1, origin)
                fork.record(origin)
                other.wait(fork)
                append(2, other)
                join.record(other)
                origin.wait(join)
                append(3, origin)
            with capture.graph as graph:
                graph.launch(origin)
    assert append.log() == [1, 2, 3]


def test_a_graph_can_be_captured_into_another(mi300x, append):
    with mi300x.stream() as stream:
        with stream.capture() as inner:
            append(1, stream)
        with inner.graph as part:
            with stream.capture() as outer:
                part.launch(stream)
                append(2, stream)
            assert append.log() == []
            with outer.graph as whole:
                whole.launch(stream)
    assert append.log() == [1, 2]


def test_work_left_on_a_joined_stream_fails_the_capture(mi300x, append):
    with mi300x.stream() as origin, mi300x.stream() as other, mi300x.event() as fork:
        with refused("StreamCaptureUnjoined"), origin.capture():
            fork.record(origin)
            other.wait(fork)
            append(2, other)
    assert append.log() == []


def test_waiting_for_the_device_in_a_capture_fails_it(mi300x, append):
    with mi300x.stream() as stream:
        with refused("StreamCaptureInvalidated"), stream.capture():
            append(1, stream)
            with refused("StreamCaptureUnsupported"):
                mi300x.synchronize()
        append(2, stream)
    assert append.log() == [2]


def test_an_event_of_a_capture_has_no_time(mi300x):
    with mi300x.stream() as stream, mi300x.event() as event:
        with stream.capture() as capture:
            event.record(stream)
            with refused("CapturedEvent"):
                event.synchronize()
        capture.graph.close()


def test_waiting_for_an_event_from_outside_breaks_a_capture(mi300x):
    with mi300x.stream() as stream, mi300x.event() as event:
        event.record(None)
        with refused("StreamCaptureInvalidated"), stream.capture():
            with refused("StreamCaptureIsolation"):
                stream.wait(event)


def test_the_null_stream_cannot_be_captured(mi300x):
    with refused("StreamCaptureUnsupported"):
        mi300x.hip.call("hipStreamBeginCapture", None, 0)


def test_a_closed_stream_is_no_stream(mi300x, append):
    with mi300x.stream() as stream:
        handle = stream.handle
    with refused("InvalidHandle"):
        mi300x.hip.call("hipStreamSynchronize", handle)
