"""Foreign code objects from Python: `gfx942.load(data)["kernel"].launch(grid, block, args)`."""

import struct
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from hip_engine.device import Buffer, LaunchRecord
from hip_engine.errors import CodeObjectError, LaunchError
from hip_engine.gfx942 import bundle
from hip_engine.gfx942.device import EmulatedDevice
from hip_engine.gfx942.dispatch import EmulatedKernel
from hip_engine.gfx942.module import Module

POINTER = "P"


class Program(Mapping[str, "ProgramKernel"]):
    """The kernels of a file, by symbol; each is translated when it is first launched."""

    def __init__(self, data: bytes, device: EmulatedDevice | None = None):
        """`data`: a gfx942 code object, a bundle (compressed too) or a host program with one.

        Raises:
          CodeObjectError: none of these, damaged, or for another chip, which is named.
        """
        self.device = device or EmulatedDevice()
        self.modules: list[Module] = []
        self._of: dict[str, Module] = {}
        for code_object in bundle.select(data):
            module = self.device.open(code_object)
            self.modules.append(module)
            for symbol in module:
                self._of.setdefault(symbol, module)
        if not self._of:
            raise CodeObjectError("the code object holds no kernel")

    def __getitem__(self, symbol: str) -> "ProgramKernel":
        """The kernel. Raises CodeObjectError with the names of those that exist."""
        if symbol not in self._of:
            known = ", ".join(self._of)
            raise CodeObjectError(f"no kernel {symbol!r} in the code object; it has: {known}")
        return ProgramKernel(self.device, self._of[symbol], symbol)

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)


class ProgramKernel:
    """A kernel that takes numpy arrays where the device code takes pointers."""

    def __init__(self, device: EmulatedDevice, module: Module, symbol: str):
        self.device, self.module, self.symbol = device, module, symbol
        self.descriptor = module.code.kernels[symbol]

    @property
    def compiled(self) -> EmulatedKernel:
        """Raises UnsupportedInstruction if it cannot be translated."""
        return self.module[self.symbol]

    def launch(
        self,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        args: Sequence | bytes = (),
        *,
        layout: str | None = None,
        dynamic_lds_bytes: int = 0,
    ) -> LaunchRecord:
        """Run it and wait.

        An array is copied to the device and, if it is writeable, back after the launch, in place.
        Buffers, integers, floats and numpy scalars are passed as they are; `bytes` as a whole is
        the raw kernarg segment. `layout` is a struct format for kernels without metadata (P is a
        pointer, native alignment): layout="PPi".

        Raises:
          LaunchError: arguments, grid or block that do not fit. DeviceFault: the kernel faulted.
        """
        compiled = self.compiled
        staged: dict[tuple[int, int], tuple[np.ndarray, Buffer]] = {}
        try:
            values = args if isinstance(args, bytes) else self._stage(args, staged)
            if layout is not None:
                values = self._pack(layout, values)
            elif not isinstance(values, bytes) and values and not self.descriptor.arguments:
                raise LaunchError(
                    f"{self.symbol} has no argument metadata: say how its "
                    f"{self.descriptor.kernarg_bytes} bytes are laid out, as in layout='PPi'"
                )
            record = self.device.launch(
                compiled, _three(grid), _three(block), values, dynamic_lds_bytes
            )
            for array, buffer in staged.values():
                if array.flags.writeable:
                    got = self.device.read(buffer, array.dtype, array.size)
                    array[...] = got.reshape(array.shape)
            return record
        finally:
            for _, buffer in staged.values():
                self.device.free(buffer)

    def _stage(self, args: Sequence, staged: dict) -> list:
        return [self._place(a, i, staged) if _is_array(a) else a for i, a in enumerate(args)]

    def _place(self, array: np.ndarray, position: int, staged: dict) -> Buffer:
        """The same array twice is one buffer, as it would be for the kernel's author."""
        if array.dtype.hasobject:
            raise LaunchError(f"{self.symbol}: argument {position} is an array of Python objects")
        key = (array.ctypes.data, array.nbytes)
        if key not in staged:
            buffer = self.device.allocate(max(array.nbytes, 1), f"argument {position}")
            staged[key] = array, buffer
            if array.nbytes:
                self.device.write(buffer, array)
        return staged[key][1]

    def _pack(self, layout: str, values: Sequence) -> bytes:
        plain = [
            v.address if isinstance(v, Buffer) else v.item() if isinstance(v, np.generic) else v
            for v in values
        ]
        try:
            return struct.pack(layout, *plain)
        except struct.error as error:
            raise LaunchError(f"{self.symbol}: layout {layout!r}: {error}") from error


def _is_array(value) -> bool:
    return isinstance(value, np.ndarray) and value.ndim > 0


def _three(sizes: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (sizes,) if isinstance(sizes, int | np.integer) else tuple(sizes)
    return (*(int(s) for s in sizes), 1, 1)[: max(3, len(sizes))]
