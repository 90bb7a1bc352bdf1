"""What a slot of the cache may be stored as, and how stored bytes become fp32."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class KvType:
    """A cache type.

    Attributes:
      symbol: how kernels spell it. raw: numpy type of the bytes. widen: those bytes as fp32.
      operands: what matrix cores multiply it as, None if they cannot.
      poison: a word of four bytes that reads as NaN, for freed pages.
    """

    name: str
    symbol: str
    raw: np.dtype
    widen: Callable[[np.ndarray], np.ndarray]
    operands: str | None
    poison: int = 0x7FFF7FFF
    scaled: bool = False


def _widen_directly(raw: np.ndarray) -> np.ndarray:
    return raw.astype(np.float32)


def _widen_bfloat16(raw: np.ndarray) -> np.ndarray:
    return (raw.astype(np.uint32) << 16).view(np.float32)


def _fp8_values() -> np.ndarray:
    """E4M3 FNUZ: bias 8, no infinity, no negative zero, 0x80 is NaN."""
    codes = np.arange(256)
    exponent, fraction = codes >> 3 & 15, codes & 7
    normal = (1 + fraction / 8) * 2.0 ** (exponent - 8)
    magnitude = np.where(exponent == 0, fraction / 8 * 2.0**-7, normal)
    values = np.where(codes < 128, magnitude, -magnitude)
    values[0x80] = np.nan
    return values.astype(np.float32)


_FP8 = _fp8_values()
FP8_LARGEST = float(np.nanmax(_FP8))


def _widen_fp8(raw: np.ndarray) -> np.ndarray:
    return _FP8[raw]


KV_TYPES = {
    kind.name: kind
    for kind in (
        KvType("float32", "f32", np.dtype(np.float32), _widen_directly, None),
        KvType("float16", "f16", np.dtype(np.float16), _widen_directly, "float16"),
        KvType("bfloat16", "bf16", np.dtype(np.uint16), _widen_bfloat16, "bfloat16"),
        KvType(
            "float8_e4m3fnuz", "fp8", np.dtype(np.uint8), _widen_fp8, "float16", 0x80808080, True
        ),
    )
}
