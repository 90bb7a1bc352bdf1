"""Scales of an fp8 cache per layer, K or V and kv head, in a JSON file that names its model."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hip_engine.errors import ScalesRefused
from hip_engine.toolchain import write_atomically
from hip_engine.weights import ModelFile


@dataclass(frozen=True)
class KvScales:
    """`tokens`: how many the scales were calibrated on."""

    model_sha256: str
    tokens: int
    scales_L2K: np.ndarray

    def write(self, path: str | Path):
        told = {"model_sha256": self.model_sha256, "tokens": self.tokens}
        text = json.dumps(told | {"scales_L2K": self.scales_L2K.tolist()}, indent=1)
        write_atomically(Path(path), text.encode())

    @classmethod
    def read(cls, path: str | Path, model: ModelFile) -> "KvScales":
        """Scales for `model`.

        Raises:
          ScalesRefused: no such file, another model's, or not a positive number a head.
        """
        try:
            told = json.loads(Path(path).read_text())
            found = cls(
                told["model_sha256"], told["tokens"], np.array(told["scales_L2K"], np.float32)
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ScalesRefused(f"{path} holds no scales of a KV cache: {error!r}") from error
        if found.model_sha256 != model.sha256:
            raise ScalesRefused(
                f"{path} was calibrated on model {found.model_sha256[:12]}, this is "
                f"{model.sha256[:12]}: calibrate again (python -m experiments.calibrate_kv)"
            )
        shape, got = (model.config.L, 2, model.config.K), found.scales_L2K
        if got.shape != shape or not (np.isfinite(got) & (got > 0)).all():
            raise ScalesRefused(
                f"{path}: the model takes {shape} positive numbers, not {got.shape}"
            )
        return found
