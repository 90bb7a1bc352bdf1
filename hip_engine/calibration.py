"""Scales of an fp8 cache from the largest K and V that given tokens lead to: powers of two.

They cost nothing, since fp8 has an exponent of its own, and neither the division of what is stored
nor the product with what was read rounds.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hip_engine.device import Device
from hip_engine.engine import Engine
from hip_engine.errors import ScalesRefused
from hip_engine.kv_scales import KvScales
from hip_engine.kv_types import FP8_LARGEST
from hip_engine.taps import Taps

SITES = ("attn.k_rope", "attn.v")  # what the cache stores


def calibrate(model_path: str | Path, device: Device, prompts: Sequence[Sequence[int]]) -> KvScales:
    """Runs the prompts with an fp32 cache: a head's largest number becomes at most the largest of
    fp8, and more than half of it. In other text a larger one may saturate.

    Raises:
      ScalesRefused: there is no token to look at. EngineError: as Engine.open and prefill.
    """
    if not any(map(len, prompts)):
        raise ScalesRefused("no tokens to calibrate scales on: give a prompt")
    engine = Engine.open(model_path, device, kv_dtype="float32")
    config = engine.config
    largest_L2K = np.zeros((config.L, 2, config.K), np.float32)
    try:
        for prompt in prompts:
            engine.reset()
            for step in engine.prefill(prompt, Taps.of(SITES)):
                for layer, which in np.ndindex(config.L, 2):
                    x_KH = np.abs(step.taps[layer, SITES[which]][0])
                    largest_L2K[layer, which] = np.maximum(largest_L2K[layer, which], x_KH.max(-1))
    finally:
        engine.close()
    # A head of zeros needs no scale.
    least_L2K = np.where(largest_L2K > 0, largest_L2K / np.float32(FP8_LARGEST), np.float32(1))
    mantissa_L2K, exponent_L2K = np.frexp(least_L2K)
    scales_L2K = np.ldexp(np.float32(1), exponent_L2K - (mantissa_L2K == 0.5))
    return KvScales(engine.model_sha256, sum(map(len, prompts)), scales_L2K)
