"""Everything the engine keeps on the device, named and sized before the first allocation."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hip_engine.config import ModelConfig
from hip_engine.device import Buffer, Device
from hip_engine.errors import OutOfDeviceMemory
from hip_engine.kv_cache import KvLayout
from hip_engine.launcher import ATTENTION_CHUNK
from hip_engine.weights import ModelFile

FLOAT = 4
CHECKED_ROWS = 3
ROW_INTS = 3  # token, position and sequence of a row: Row of forward.py


def site_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape per token of every site that has a buffer of its own, reused from layer to layer."""
    D, F, N, K, H = config.D, config.F, config.N, config.K, config.H
    return {
        "embed": (D,),
        "attn.norm": (D,),
        "attn.q": (N, H),
        "attn.k": (K, H),
        "attn.v": (K, H),
        "attn.q_rope": (N, H),
        "attn.k_rope": (K, H),
        "attn.out": (N, H),
        "attn.proj": (D,),
        "resid.mid": (D,),
        "ffn.norm": (D,),
        "ffn.gate": (F,),
        "ffn.up": (F,),
        "ffn.act": (F,),
        "ffn.down": (D,),
        "resid.out": (D,),
        "final.norm": (D,),
        "logits": (config.V,),
    }


@dataclass(frozen=True)
class MemoryPlan:
    """Label -> bytes of every buffer, for passes of up to `max_rows` tokens."""

    nbytes: Mapping[str, int]
    max_chunks: int

    @classmethod
    def of(cls, model: ModelFile, layout: KvLayout, max_rows: int) -> "MemoryPlan":
        config = model.config
        max_chunks = -(-layout.positions // ATTENTION_CHUNK)
        partials = max_rows * config.N * max_chunks * FLOAT
        widest = max(tensor.columns for tensor in model.tensors.values())
        plan = {name: tensor.data.nbytes for name, tensor in model.tensors.items()}
        plan |= layout.sizes(config)
        plan |= {
            site: max_rows * int(np.prod(shape)) * FLOAT
            for site, shape in site_shapes(config).items()
        }
        plan |= {
            "rope.cos_sin": layout.positions * config.H * FLOAT,
            "attn.partial_max": partials,
            "attn.partial_sum": partials,
            "attn.partial_out": partials * config.H,
            "step.rows": ROW_INTS * max_rows * 4,
            "step.top1": max_rows * 4,
            "step.history": max_rows * layout.positions * 4,
            "check.rows": CHECKED_ROWS * 4,
            "check.values": CHECKED_ROWS * widest * FLOAT,
        }
        return cls(plan, max_chunks)

    def allocate(self, device: Device) -> dict[str, Buffer]:
        """All or nothing.

        Raises:
          OutOfDeviceMemory: with the whole plan's size; what was allocated is freed again.
        """
        buffers: dict[str, Buffer] = {}
        try:
            for label, nbytes in self.nbytes.items():
                buffers[label] = device.allocate(nbytes, label)
        except OutOfDeviceMemory as error:
            for buffer in buffers.values():
                device.free(buffer)
            total = sum(self.nbytes.values())
            raise OutOfDeviceMemory(
                f"the model needs {total} bytes on the device, {label} did not fit: {error}"
            ) from error
        return buffers


def rope_table(config: ModelConfig, positions: int) -> np.ndarray:
    """cos and sin of every position and pair, interleaved [position][H]: fp64 rounded to fp32."""
    pairs = np.arange(config.H // 2, dtype=np.float64)
    frequencies = np.float64(config.rope_base) ** (-2.0 * pairs / config.H)
    angles = np.arange(positions, dtype=np.float64)[:, None] * frequencies
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)
