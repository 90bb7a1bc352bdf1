"""Attention on matrix cores with the vector kernel as its shadow: same launch, same inputs."""

import math
from dataclasses import dataclass

import numpy as np

from experiments.observed_device import ObservedDevice
from hip_engine.device import LaunchRecord
from hip_engine.engine import Engine
from hip_engine.kv_types import KV_TYPES
from hip_engine.routes import MERGE, Route, attention_symbol


@dataclass(frozen=True)
class Pair:
    """attn.out of one launch, TNH, as either kernel made it, and what each executed."""

    mfma_TNH: np.ndarray
    valu_TNH: np.ndarray
    mfma_executed: int
    valu_executed: int


class ShadowDevice(ObservedDevice):
    """After each launch of an mfma attention kernel the valu one is launched on the same arguments.

    What attention may write is put back after it, so the engine finds every byte as if there were
    no shadow; what a kernel forgot to write stays forgotten.
    """

    def __init__(self, device):
        super().__init__(device)
        self.pairs: list[Pair] = []
        self._symbol, self._pending = "", None

    def follow(self, engine: Engine, kv_dtype: str) -> None:
        """From now on, with the vector kernel of the engine's own head size and cache type."""
        route = Route(engine.route.kernel, "valu")
        self._symbol = attention_symbol(self.kernels, route, KV_TYPES[kv_dtype], engine.config)
        self._shape = engine.config.N, engine.config.H

    def observe(self, kernel, grid, block, args, dynamic_lds_bytes, stream) -> LaunchRecord:
        asked = kernel, grid, block, args, dynamic_lds_bytes
        record = self.device.launch(*asked, stream=stream)
        if not self._symbol:
            return record
        if kernel.symbol.startswith("attn_") and "_mfma_" in kernel.symbol:
            self._pending = (kernel, grid, block, args, dynamic_lds_bytes)
            self._executed = record.executed.get("mfma", 0)
        elif kernel.symbol == MERGE and self._pending:
            mfma_TNH, before = self._output(grid), self._attention_bytes()
            executed = self._launch_shadow()
            self.device.launch(*asked, stream=stream)
            self.pairs.append(Pair(mfma_TNH, self._output(grid), self._executed, executed))
            for label, raw in before.items():
                self.device.write(self.buffers[label], raw)
            self._pending = None
        return record

    def _attention_bytes(self) -> dict[str, np.ndarray]:
        labels = [label for label in self.buffers if label.startswith(("attn.", "kv."))]
        byte = np.dtype(np.uint8)
        return {n: self.device.read(self.buffers[n], byte, self.buffers[n].nbytes) for n in labels}

    def _launch_shadow(self) -> int:
        """Matrix-core instructions that the vector kernel executed: to be none."""
        _, (workgroups, _, tokens), block, args, lds = self._pending
        N, K = int(args[-1]["N"]), int(args[-1]["K"])
        tile = int(self._symbol.rpartition("_g")[2])
        grid = workgroups, K * math.ceil(N // K / tile), tokens
        record = self.device.launch(self.kernels[self._symbol], grid, block, args, lds)
        return record.executed.get("mfma", 0)

    def _output(self, merge_grid) -> np.ndarray:
        N, H = self._shape
        tokens = merge_grid[1]
        flat = self.device.read(self.buffers["attn.out"], np.dtype(np.float32), tokens * N * H)
        return flat.reshape(tokens, N, H)
