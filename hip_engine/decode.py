"""Decode passes as graphs: captured once, replayed, and tokens read while the next pass runs."""

import time
from collections.abc import Collection, Sequence

import numpy as np

from hip_engine.attestation import Observer
from hip_engine.device import Buffer, Graph
from hip_engine.forward import Forward, KernelChoice, Row
from hip_engine.launcher import ATTENTION_CHUNK, Launcher, chunk_workgroups
from hip_engine.taps import Generation


class Readback:
    """Brings chosen tokens to the host in a stream of its own; two are under way at most.

    Pass n writes its token where no other pass writes, so pass n + 1 need not wait for the copy.
    """

    def __init__(self, launcher: Launcher, history: Buffer):
        device = launcher.device
        self._passes, self._copies = launcher.stream, device.stream()
        self._history, self._host = history, device.pinned(2, np.int32)
        self._chosen = [device.event(), device.event()]
        self._copied = [device.event(), device.event()]
        self.waited_s = 0.0

    def start(self, number: int, position: int):
        """Of the pass launched last, whose token is at `position` of the history."""
        slot = number % 2
        self._chosen[slot].record(self._passes)
        self._copies.wait(self._chosen[slot])
        into = self._host.array[slot : slot + 1]
        self._copies.read_later(self._history, into, 4 * position)
        self._copied[slot].record(self._copies)

    def token(self, number: int) -> int:
        """Waits for the copy that `start(number, ...)` began."""
        begin = time.perf_counter()
        self._copied[number % 2].synchronize()
        self.waited_s += time.perf_counter() - begin
        return int(self._host.array[number % 2])

    def close(self):
        self._copies.synchronize()
        for handle in (*self._chosen, *self._copied, self._copies, self._host):
            handle.close()


class Decoder:
    """Passes of one token a sequence, one graph launch each.

    A graph serves every position up to a power of two of chunks: workgroups beyond the live chunks
    return at once, and which workgroup computes a chunk changes no bit.
    """

    def __init__(self, forward: Forward, launcher: Launcher, choice: KernelChoice, history: Buffer):
        self._forward, self._launcher, self._choice = forward, launcher, choice
        self._readback = Readback(launcher, history)
        self._graphs: dict[tuple[int, int], Graph] = {}

    def step(self, rows: Sequence[Row]):
        """One pass over `rows`; nothing is read."""
        self._forward.write_rows(rows)
        S = max(row.position for row in rows) + 1
        self._launcher.replay(self._graph(len(rows), S))

    def free_run(
        self, row: Row, count: int, until: Collection[int], observer: Observer
    ) -> Generation:
        """Passes that feed themselves, from `row` on: `count`, or up to a token of `until`.

        A pass is launched before the token of the one before is known to the host; the pass after
        a token of `until` is thus run in vain, and fills a slot that is not yet live.
        """
        device, readback = self._launcher.device, self._readback
        begin, busy_s, waited_s = time.perf_counter(), device.busy_s, readback.waited_s
        self._forward.write_rows([row])
        tokens: list[int] = []
        for number in range(count):
            graph = self._graph(1, row.position + number + 1)
            self._launcher.replay(graph)
            readback.start(number, row.position + number)
            observer.add(self._launcher.take_records())
            if number:
                tokens.append(readback.token(number - 1))
                if tokens[-1] in until:
                    break
        else:
            tokens.append(readback.token(count - 1))
        seconds = time.perf_counter() - begin
        host_s = seconds - (device.busy_s - busy_s) - (readback.waited_s - waited_s)
        each_ms = 1e3 / len(tokens)
        return Generation(tuple(tokens), len(graph), each_ms * seconds, each_ms * host_s)

    def close(self):
        for graph in self._graphs.values():
            graph.close()
        self._graphs = {}
        self._readback.close()

    def _graph(self, T: int, S: int) -> Graph:
        chunks = 1 << (chunk_workgroups(S, self._choice.window) - 1).bit_length()
        if (T, chunks) not in self._graphs:
            slots = chunks * ATTENTION_CHUNK
            self._graphs[T, chunks] = self._forward.capture(T, slots, self._choice)
        return self._graphs[T, chunks]
