"""Kernel arguments to kernarg bytes, the AQL packet, and what a launch may ask for."""

import struct

import numpy as np

from hip_engine.device import Buffer
from hip_engine.errors import LaunchError

MAX_LDS_BYTES = 1 << 16
MAX_BLOCK = 1024


def pack_arguments(kernel, args, grid, block, dynamic_lds: int) -> bytearray:
    """Kernarg segment from Python values: explicit arguments, then the hidden ones.

    `args` may also be the bytes of the explicit arguments, as HIP_LAUNCH_PARAM_BUFFER_POINTER
    and objects without metadata have them.

    Raises:
      LaunchError: wrong count, or a value that does not fit its argument.
    """
    if isinstance(args, bytes | bytearray):
        return _fill_hidden(kernel, _raw_segment(kernel, args), grid, block, dynamic_lds)
    explicit = kernel.explicit
    if len(args) != len(explicit):
        raise LaunchError(f"{kernel.symbol} takes {len(explicit)} arguments, {len(args)} given")
    segment = bytearray(max(kernel.descriptor.kernarg_bytes, 16))
    for position, (argument, value) in enumerate(zip(explicit, args, strict=True)):
        try:
            raw = _argument_bytes(value, argument.size)
        except (struct.error, OverflowError, TypeError, ValueError) as error:
            raise LaunchError(
                f"{kernel.symbol}: argument {position} ({argument.name or argument.kind}, "
                f"{argument.size} bytes) does not hold {value!r}: {error}"
            ) from error
        segment[argument.offset : argument.offset + argument.size] = raw
    return _fill_hidden(kernel, segment, grid, block, dynamic_lds)


def _raw_segment(kernel, raw: bytes) -> bytearray:
    needed = max((a.offset + a.size for a in kernel.explicit), default=0)
    size = kernel.descriptor.kernarg_bytes
    if not needed <= len(raw) <= max(-(-size // 16) * 16, 16):
        raise LaunchError(
            f"{kernel.symbol}: {len(raw)} bytes of arguments, it takes {needed or size}"
        )
    segment = bytearray(max(size, 16))
    segment[: len(raw)] = raw
    return segment


def _fill_hidden(kernel, segment, grid, block, dynamic_lds: int) -> bytearray:
    for argument in kernel.hidden:
        value = _hidden(argument.kind, grid, block, dynamic_lds)
        raw = value.to_bytes(argument.size, "little")
        segment[argument.offset : argument.offset + argument.size] = raw
    return segment


def _argument_bytes(value, size: int) -> bytes:
    if isinstance(value, Buffer):
        value = value.address
    if type(value) is int:  # nearly all are
        return value.to_bytes(size, "little", signed=value < 0)
    if isinstance(value, np.generic):
        raw = value.tobytes()
    elif isinstance(value, bytes | bytearray):
        raw = bytes(value)
    elif isinstance(value, float):
        raw = struct.pack({4: "<f", 8: "<d"}[size], value) if size in (4, 8) else b""
    else:
        raw = int(value).to_bytes(size, "little", signed=value < 0)
    if len(raw) != size:
        raise TypeError(f"{len(raw)} bytes given")
    return raw


def _hidden(kind: str, grid, block, dynamic_lds: int) -> int:
    axis = {"x": 0, "y": 1, "z": 2}.get(kind[-1], 0)
    if kind.startswith("hidden_block_count"):
        return grid[axis]
    if kind.startswith("hidden_group_size"):
        return block[axis]
    if kind == "hidden_grid_dims":
        return max(1, *(i + 1 for i in range(3) if grid[i] * block[i] > 1), 1)
    if kind == "hidden_dynamic_lds_size":
        return dynamic_lds
    if kind == "hidden_shared_base":
        return 0x00010000
    if kind == "hidden_private_base":
        return 0x00020000
    return 0


def aql_packet(kernel, grid, block, kernarg: int, lds: int) -> bytes:
    """The HSA kernel dispatch packet that a kernel may read through its dispatch pointer."""
    packet = bytearray(64)
    struct.pack_into("<HH3H", packet, 0, 0, 3, *block)
    struct.pack_into("<3I", packet, 12, *(g * b for g, b in zip(grid, block, strict=True)))
    struct.pack_into("<II", packet, 24, kernel.descriptor.scratch_bytes, lds)
    struct.pack_into("<QQ", packet, 32, kernel.image.address, kernarg)
    return bytes(packet)


def check_geometry(kernel, grid, block, dynamic_lds: int) -> None:
    """Refuse a launch that the hardware would refuse, before anything is written."""
    if len(grid) != 3 or len(block) != 3 or min(*grid, *block) < 1:
        raise LaunchError(
            f"{kernel.symbol}: grid {grid} and block {block} must be 3 positive sizes"
        )
    if max(grid) >= 1 << 31:
        raise LaunchError(f"{kernel.symbol}: grid {grid} is too large")
    items = block[0] * block[1] * block[2]
    limit = min(kernel.descriptor.max_workgroup_size, MAX_BLOCK)
    if items > limit:
        raise LaunchError(f"{kernel.symbol}: a block of {items} work-items; it takes {limit}")
    lds = kernel.descriptor.lds_bytes + dynamic_lds
    if dynamic_lds < 0 or lds > MAX_LDS_BYTES:
        raise LaunchError(f"{kernel.symbol}: {lds} bytes of LDS, the chip has {MAX_LDS_BYTES}")
