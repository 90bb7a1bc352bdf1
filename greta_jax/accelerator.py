"""What differs on a GPU: larger chunks, and quantised bytes sent ahead of their use.

A CPU reads the mapped file in place, so there is nothing to send and small chunks stay in cache.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

CPU_CHUNK_WEIGHTS = 2**21
"""Weights decoded and multiplied at a time. Small enough to stay in cache and in recycled memory:
decoding is several times faster than into fresh pages, and the products no slower."""

GPU_CHUNK_WEIGHTS = 2**28
"""On a GPU few large products; every matrix of a layer of Llama-3-8B is one chunk."""

SENDERS = 4
"""Threads that copy to the device: one alone does not fill the bus from pageable memory."""

LAYERS_AHEAD = 2
"""Layers whose quantised bytes are on their way while one computes."""

CHECKS_IN_FLIGHT = 16
"""Tensors whose NaN count may still be computing: reading a count waits for the device."""


def in_use() -> bool:
    """True if arrays live on a device with memory of its own."""
    return jax.default_backend() != "cpu"


def chunk_weights() -> int:
    """Weights of a matrix decoded at a time."""
    return GPU_CHUNK_WEIGHTS if in_use() else CPU_CHUNK_WEIGHTS


class Ahead:
    """Raw bytes on their way to the device, by key."""

    def __init__(self):
        self._senders: ThreadPoolExecutor | None = None
        self._coming: dict[Any, Future] = {}

    def ask(self, key, raw: np.ndarray) -> None:
        """Starts copying `raw`, unless that is under way."""
        if self._senders is None:
            self._senders = ThreadPoolExecutor(SENDERS, thread_name_prefix="ahead")
        if key not in self._coming:
            self._coming[key] = self._senders.submit(_send, raw)

    def take(self, key, raw: np.ndarray):
        """What was asked for, on the device; else `raw` as it is."""
        coming = self._coming.pop(key, None)
        return raw if coming is None else coming.result()


class Checks:
    """Counts of bad values that the device is still computing, oldest first."""

    def __init__(self):
        self._waiting: deque = deque()

    def add(self, check, *arguments) -> None:
        """`check(*arguments)` soon: at once on a CPU, else when enough others came after it."""
        self._waiting.append((check, arguments))
        self.settle(CHECKS_IN_FLIGHT if in_use() else 0)

    def settle(self, left: int = 0) -> None:
        """Makes the oldest checks until so many are left."""
        while len(self._waiting) > left:
            check, arguments = self._waiting.popleft()
            check(*arguments)


def _send(raw: np.ndarray) -> jax.Array:
    return jax.device_put(raw).block_until_ready()
