"""Typed errors of the engine and of its devices."""


class EngineError(Exception):
    """Base of the errors hip_engine raises on purpose: what, where and the remedy, in one line."""


class DeviceUnavailable(EngineError):
    """The requested device cannot be opened on this machine."""


class CodeObjectError(EngineError):
    """The bytes are not a loadable gfx942 code object, or the kernel asked for is not in it."""


class UnsupportedInstruction(CodeObjectError):
    """A kernel holds an instruction that the emulated device does not implement."""


class LaunchError(EngineError):
    """A launch was refused before it started: arguments, grid, block or LDS size."""


class OutOfDeviceMemory(EngineError):
    """An allocation did not fit; nothing was changed."""


class DeviceFault(EngineError):
    """A kernel did something the hardware would fault on, while it ran.

    Attributes:
      kernel, instruction, offset: symbol, disassembled text and its byte offset in the kernel.
      workgroup: (x, y, z); wave, lane: indices within the workgroup and the wave.
      address: the faulting device address, or None if the fault is not a memory access.
    """

    def __init__(
        self, message, *, kernel, instruction, offset, workgroup, wave, lane, address=None
    ):
        super().__init__(message)
        self.kernel, self.instruction, self.offset = kernel, instruction, offset
        self.workgroup, self.wave, self.lane, self.address = workgroup, wave, lane, address

    def __reduce__(self):
        """Pickled as it is: faults cross from one process to another."""
        return type(self).__new__, (type(self), str(self)), self.__dict__


class SanitizerFault(DeviceFault):
    """A sanitizer found something that the hardware would let pass; `kind` says which one."""

    kind = ""


class SanitizerError(EngineError):
    """The init sanitizer: the host reads device memory that nothing has written."""


class CompilerMissing(EngineError):
    """No clang that can target gfx942 was found."""


class KernelBuildError(EngineError):
    """The compiler refused the kernels, or a source patch does not apply exactly once."""


class ModelRefused(EngineError):
    """The file is not a model this engine runs: not a GGUF, truncated, of another shape or type."""


class UnknownRoute(EngineError):
    """A route, or one of its words, that no version of this engine knows."""


class RouteNotBuilt(EngineError):
    """A route, or a kernel of it for this model's shape, that is known and not built."""


class ContextOverflow(EngineError):
    """The next token does not fit in the cache; nothing was changed."""


class TokenRefused(EngineError):
    """A token id outside the vocabulary; nothing was changed."""


class UnknownSite(EngineError):
    """A tap asks for a site or a layer that this engine does not have."""


class WeightsDisagree(EngineError):
    """Rows of a weight decoded on the device are not those that the gguf package decodes."""


class OutOfPages(EngineError):
    """The page pool, or its table of sequences, is full; nothing was changed."""


class WrongBlockTable(EngineError):
    """A block table does not hold the pages that the pool gave; nothing was changed."""


class UnknownSequence(EngineError):
    """A sequence that was never opened, or was closed; nothing was changed."""


class ForeignSequence(EngineError):
    """A sequence that another engine opened, or this one before its reset; nothing was changed."""


class ScalesRefused(EngineError):
    """A file of fp8 scales that is not one, or is another model's."""


class TraceDamaged(EngineError):
    """A trace file holds something that was never written to it."""
