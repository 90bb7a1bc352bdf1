"""A device that sees what passes through it: allocations by label, and every launch it makes."""

from collections.abc import Sequence

from hip_engine.device import Buffer, Device, LaunchRecord


class ObservedDevice:
    """Everything else is the device's own. Launches that a stream captures are not seen: replays of
    a graph do not come by here, so steps must be tapped to be observed."""

    def __init__(self, device: Device):
        self.device = device
        self.buffers: dict[str, Buffer] = {}
        self.kernels = {}

    def __getattr__(self, name: str):
        return getattr(self.device, name)

    def allocate(self, nbytes: int, label: str) -> Buffer:
        self.buffers[label] = self.device.allocate(nbytes, label)
        return self.buffers[label]

    def open(self, code_object: bytes):
        self.kernels = self.device.open(code_object)
        return self.kernels

    def launch(
        self, kernel, grid, block, args: Sequence, dynamic_lds_bytes: int = 0, stream=None
    ) -> LaunchRecord:
        asked = kernel, grid, block, args, dynamic_lds_bytes
        if stream is not None and getattr(stream, "captures", False):
            return self.device.launch(*asked, stream=stream)
        return self.observe(*asked, stream)

    def observe(self, kernel, grid, block, args, dynamic_lds_bytes, stream) -> LaunchRecord:
        """Makes the launch; to be overridden."""
        return self.device.launch(kernel, grid, block, args, dynamic_lds_bytes, stream=stream)
