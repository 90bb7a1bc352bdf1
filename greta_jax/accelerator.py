"""What differs between a GPU and a CPU: the size of chunks, and what runs ahead of what.

A GPU is sent quantised bytes before their use. A CPU reads the mapped file in place; its chunks are
small, to stay in cache, and a few of them are decoded while the ones before are multiplied.
"""

import ctypes
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
"""Tensors whose search for NaN may still be computing: reading its result waits for the device."""

PRODUCTS_IN_FLIGHT = 2
"""Chunks that a CPU may have under way: the next is decoded while the last is multiplied, and the
memory of those before is used again."""

MALLOPT = {
    "M_TRIM_THRESHOLD": (-1, 2**30),
    "M_MMAP_THRESHOLD": (-3, 2**25),
    "M_TOP_PAD": (-2, 2**26),
}
"""glibc's numbers (malloc.h): give back no freed memory below 1 GiB, map nothing below 32 MiB, and
keep the heaps of other threads (64 MiB each), which are unmapped when empty however much is freed.
"""


def in_use() -> bool:
    """True if arrays live on a device with memory of its own."""
    return jax.default_backend() != "cpu"


def chunk_weights() -> int:
    """Weights of a matrix decoded at a time."""
    return GPU_CHUNK_WEIGHTS if in_use() else CPU_CHUNK_WEIGHTS


def pace(products: list[jax.Array]) -> None:
    """Keeps a CPU's chunks from being decoded far ahead of their products."""
    if not in_use() and len(products) >= PRODUCTS_IN_FLIGHT:
        products[-PRODUCTS_IN_FLIGHT].block_until_ready()


def keep_freed_memory() -> None:
    """Has glibc keep what XLA frees: fresh pages cost more than decoding into them.

    Where the C library has no mallopt nothing is changed, and streaming is slower.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for option, value in MALLOPT.values() if mallopt and not in_use() else ():
        mallopt(option, value)


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
    """Searches for bad values that the device is still making, oldest first."""

    def __init__(self):
        self._waiting: deque = deque()

    def add(self, check, *arguments) -> None:
        """`check(*arguments)` when enough others came after it, or at `settle`."""
        self._waiting.append((check, arguments))
        self.settle(CHECKS_IN_FLIGHT)

    def settle(self, left: int = 0) -> None:
        """Makes the oldest checks until so many are left."""
        while len(self._waiting) > left:
            check, arguments = self._waiting.popleft()
            check(*arguments)


def _send(raw: np.ndarray) -> jax.Array:
    return jax.device_put(raw).block_until_ready()
