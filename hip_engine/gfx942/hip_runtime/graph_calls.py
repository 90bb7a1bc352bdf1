"""Stream capture and graphs: recorded work, replayed with its arguments as they were captured."""

import ctypes

from hip_engine.gfx942.hip_runtime.runtime import (
    HipFailure,
    Runtime,
    api,
    put_int,
    put_pointer,
    put_size,
)
from hip_engine.gfx942.hip_runtime.stream_calls import Capture, Stream, enqueue, stream_of

ACTIVE, INVALIDATED = 1, 2
MODES = (0, 1, 2)  # global, thread local, relaxed


def _require_stream(hip: Runtime, handle: int) -> Stream:
    stream = stream_of(hip, handle)
    if stream is None:
        raise HipFailure("StreamCaptureUnsupported", "the null stream cannot be captured")
    return stream


@api
def hipStreamBeginCapture(hip: Runtime, handle: int, mode: int):
    stream = _require_stream(hip, handle)
    if mode not in MODES:
        raise HipFailure("InvalidValue", f"capture mode {mode}")
    if stream.capture:
        raise HipFailure("IllegalState", "the stream captures already")
    stream.join(Capture(stream, mode))


@api
def hipStreamEndCapture(hip: Runtime, handle: int, graph: int):
    stream = _require_stream(hip, handle)
    capture = stream.capture
    if capture is None:
        raise HipFailure("IllegalState", "the stream does not capture")
    if capture.origin is not stream:
        raise HipFailure("StreamCaptureUnmatched", "the capture began in another stream")
    if not graph:
        raise HipFailure("InvalidValue", "a null pointer for the graph")
    put_pointer(graph, 0)
    unjoined = [m for m in capture.members if stream.reached.get(m, 0) < m.position]
    for member in capture.members:
        member.capture = None
    if capture.invalid:
        raise HipFailure("StreamCaptureInvalidated", "a call of this capture failed")
    if [m for m in unjoined if m is not stream]:
        raise HipFailure("StreamCaptureUnjoined", "a stream that joined has work after its event")
    put_pointer(graph, hip.graphs.add(tuple(capture.work)))


@api
def hipStreamIsCapturing(hip: Runtime, handle: int, status: int):
    hipStreamGetCaptureInfo(hip, handle, status, 0)


@api
def hipStreamGetCaptureInfo(hip: Runtime, handle: int, status: int, identity: int):
    stream = stream_of(hip, handle)
    capture = stream.capture if stream else None
    put_int(status, (INVALIDATED if capture.invalid else ACTIVE) if capture else 0)
    if identity:
        put_size(identity, id(capture) if capture else 0)


@api
def hipGraphInstantiate(hip: Runtime, result: int, graph: int, node: int, log: int, size: int):
    if node:
        put_pointer(node, 0)
    if log and size:
        ctypes.memset(log, 0, 1)
    hipGraphInstantiateWithFlags(hip, result, graph, 0)


@api
def hipGraphInstantiateWithFlags(hip: Runtime, result: int, graph: int, flags: int):
    work = hip.graphs[graph]
    put_pointer(result, hip.executables.add(work))


@api
def hipGraphLaunch(hip: Runtime, executable: int, stream: int):
    for work in hip.executables[executable]:
        enqueue(hip, stream, work)


@api
def hipGraphUpload(hip: Runtime, executable: int, stream: int):
    hip.executables[executable], stream_of(hip, stream)


@api
def hipGraphGetNodes(hip: Runtime, graph: int, nodes: int, count: int):
    """Only the number of nodes: they have no handles here."""
    if nodes:
        raise HipFailure("NotSupported", "nodes of a captured graph have no handles here")
    put_size(count, len(hip.graphs[graph]))


@api
def hipGraphDestroy(hip: Runtime, graph: int):
    hip.graphs.remove(graph)


@api
def hipGraphExecDestroy(hip: Runtime, executable: int):
    hip.executables.remove(executable)
