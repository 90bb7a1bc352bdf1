"""Single kernels on a device: arrays in, arrays out, sentinels after every output."""

from contextlib import contextmanager

import numpy as np

from hip_engine.device import Buffer, Device
from hip_engine.launcher import Launcher

SENTINEL_BYTES = 256
SENTINEL = 0xA5


class Bench:
    """Allocations live for the duration of `scope`; `result` checks the sentinel of its buffer."""

    def __init__(self, device: Device, code_object: bytes):
        self.device = device
        self.launch = Launcher(device, code_object)
        self._buffers: list[Buffer] = []

    @contextmanager
    def scope(self):
        try:
            yield self
        finally:
            for buffer in self._buffers:
                self.device.free(buffer)
            self._buffers = []

    def put(self, array: np.ndarray) -> int:
        """A copy of `array` on the device: its address."""
        buffer = self.device.allocate(array.nbytes, "input")
        self.device.write(buffer, array)
        self._buffers.append(buffer)
        return buffer.address

    def output(self, nbytes: int) -> Buffer:
        """Room for a result, filled with the sentinel byte, and more of it behind."""
        buffer = self.device.allocate(nbytes + SENTINEL_BYTES, "output")
        self.device.write(buffer, np.full(nbytes + SENTINEL_BYTES, SENTINEL, np.uint8))
        self._buffers.append(buffer)
        return buffer

    def result(self, buffer: Buffer, dtype, shape: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(shape))
        nbytes = count * np.dtype(dtype).itemsize
        behind = self.device.read(buffer, np.dtype(np.uint8), SENTINEL_BYTES, nbytes)
        assert (behind == SENTINEL).all(), "the kernel wrote past its output"
        return self.device.read(buffer, np.dtype(dtype), count).reshape(shape)
