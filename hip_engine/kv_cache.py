"""The KV cache: two buffers, each [layer][kv head][position][H]."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hip_engine.config import ModelConfig
from hip_engine.device import Buffer, Device

DTYPES = {"float16": np.dtype(np.float16), "float32": np.dtype(np.float32)}
# How a kernel symbol spells the dtype of its cache.
KERNEL_NAMES = {"float16": "f16", "float32": "f32"}


@dataclass(frozen=True)
class KvGeometry:
    """Where the slot of (layer, kv head, position) lies: offsets are bytes from a buffer's start.

    The same strides hold for both buffers; a slot is `slot_bytes` long.
    """

    k: Buffer
    v: Buffer
    layers: int
    kv_heads: int
    positions: int
    layer_stride_bytes: int
    head_stride_bytes: int
    position_stride_bytes: int
    slot_bytes: int

    def offset_bytes(self, layer: int, kv_head: int, position: int) -> int:
        return (
            layer * self.layer_stride_bytes
            + kv_head * self.head_stride_bytes
            + position * self.position_stride_bytes
        )


class KvCache:
    """The slabs of all layers for one sequence of at most `positions` tokens."""

    @staticmethod
    def sizes(config: ModelConfig, dtype: str, positions: int) -> dict[str, int]:
        """Bytes of the two buffers, for the allocation plan."""
        each = config.L * config.K * positions * config.H * DTYPES[dtype].itemsize
        return {"kv.k": each, "kv.v": each}

    def __init__(
        self, config: ModelConfig, dtype: str, positions: int, buffers: Mapping[str, Buffer]
    ):
        self.dtype = DTYPES[dtype]
        slot_bytes = config.H * self.dtype.itemsize
        self.head_stride_elements = positions * config.H
        self.H = config.H
        self.geometry = KvGeometry(
            k=buffers["kv.k"],
            v=buffers["kv.v"],
            layers=config.L,
            kv_heads=config.K,
            positions=positions,
            layer_stride_bytes=config.K * positions * slot_bytes,
            head_stride_bytes=positions * slot_bytes,
            position_stride_bytes=slot_bytes,
            slot_bytes=slot_bytes,
        )

    def layer_offset_bytes(self, layer: int) -> int:
        return layer * self.geometry.layer_stride_bytes

    def live_slab(self, device: Device, which: str, layer: int, S: int) -> np.ndarray:
        """The first S slots of "k" or "v" as stored, SKH, widened to fp32."""
        buffer = getattr(self.geometry, which)
        heads = [
            device.read(
                buffer, self.dtype, S * self.H, self.geometry.offset_bytes(layer, head, 0)
            ).reshape(S, self.H)
            for head in range(self.geometry.kv_heads)
        ]
        return np.stack(heads, axis=1).astype(np.float32)
