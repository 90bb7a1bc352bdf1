"""Kernel arguments as the bytes that HIP_LAUNCH_PARAM_BUFFER_POINTER takes."""

import struct
from collections.abc import Sequence

import numpy as np

from hip_engine.device import Buffer
from hip_engine.errors import LaunchError

FLOATS = {4: "<f", 8: "<d"}
SIGNED = {1: "<b", 2: "<h", 4: "<i", 8: "<q"}
UNSIGNED = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}


def pack(symbol: str, explicit: Sequence, args: Sequence) -> bytes:
    """Places `args` at the offsets of the explicit arguments; the runtime adds the hidden ones.

    Raises:
      LaunchError: wrong number of arguments, or one that does not fit its place, by name.
    """
    if len(explicit) != len(args):
        raise LaunchError(f"{symbol} takes {len(explicit)} arguments, was given {len(args)}")
    packed = bytearray(max((a.offset + a.size for a in explicit), default=0))
    for argument, value in zip(explicit, args, strict=True):
        try:
            raw = _encode(value, argument.size)
        except (struct.error, KeyError, TypeError) as error:
            raise LaunchError(f"{symbol}: {argument.name} = {value!r}: {error}") from None
        if len(raw) != argument.size:
            raise LaunchError(
                f"{symbol}: {argument.name} is {argument.size} bytes, {value!r} is {len(raw)}"
            )
        packed[argument.offset : argument.offset + argument.size] = raw
    return bytes(packed)


def _encode(value, size: int) -> bytes:
    if isinstance(value, Buffer):
        return struct.pack("<Q", value.address)
    if isinstance(value, np.generic):
        return value.tobytes()
    if isinstance(value, float):
        return struct.pack(FLOATS[size], value)
    return struct.pack(SIGNED[size] if value < 0 else UNSIGNED[size], value)
