"""Rotary position embedding: the angle of each pair at each position, and its scalings.

Formulas: RoFormer (Su et al. 2021); linear (Chen et al. 2023); YaRN (Peng et al. 2023); LongRoPE
(Ding et al. 2024). The keys, and what holds when one is missing, are llama.cpp's; but YaRN's betas,
which it reads for none of our architectures, are obeyed, as in transformers.
"""

import math
from dataclasses import dataclass

import numpy as np

SCALINGS = ("none", "linear", "yarn", "longrope")
FLATTEST_RAMP = 0.001
"""YaRN's ramp is at least that wide, which keeps a division from zero (llama.cpp, transformers)."""


@dataclass(frozen=True)
class RopeScaling:
    """How frequencies change for contexts longer than the model was trained on.

    factor: how many times longer. attn_factor: multiplies cosine and sine. original_context,
    beta_fast, beta_slow: between that many rotations over the original context, YaRN goes from
    keeping a frequency to dividing it.
    """

    kind: str = "linear"
    factor: float = 1.0
    attn_factor: float = 1.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    @property
    def magnitude(self) -> float:
        """What cosine and sine are multiplied by; YaRN has 1 + ln(factor)/10 of its own."""
        stretched = self.kind == "yarn" and self.factor > 1
        return self.attn_factor * (1 + 0.1 * math.log(self.factor) if stretched else 1.0)

    def applied(self, frequency_R: np.ndarray, base: float) -> np.ndarray:
        """The scaled frequencies."""
        divided_R = frequency_R / self.factor
        if self.kind != "yarn":
            return divided_R
        R = len(frequency_R)
        low = max(math.floor(self._pair_of(self.beta_fast, base, R)), 0)
        high = min(math.ceil(self._pair_of(self.beta_slow, base, R)), 2 * R - 1)
        ramp_R = np.clip((np.arange(R) - low) / max(high - low, FLATTEST_RAMP), 0, 1)
        return divided_R * ramp_R + frequency_R * (1 - ramp_R)

    def _pair_of(self, rotations: float, base: float, R: int) -> float:
        """The pair that turns so many times in the original context."""
        turns = self.original_context / (rotations * 2 * math.pi)
        return R * math.log(turns) / math.log(base)


@dataclass(frozen=True)
class Rope:
    """The rotation of one layer: `dim` elements of each head turn, with these frequencies.

    factors: divisors of the frequencies, dim/2 of them (Llama 3.1, Phi-3).
    """

    base: float
    dim: int
    scaling: RopeScaling | None = None
    factors: tuple[float, ...] | None = None

    def frequencies(self) -> np.ndarray:
        """Radians a position by which each pair turns, dim/2 of them, in fp64."""
        frequency_R = np.float64(self.base) ** (-2.0 * np.arange(self.dim // 2) / self.dim)
        if self.factors is not None:
            frequency_R = frequency_R / np.asarray(self.factors, np.float64)
        return frequency_R if self.scaling is None else self.scaling.applied(frequency_R, self.base)

    def tables(self, positions_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cosine and sine [T, dim/2] in fp64."""
        angle_TR = np.asarray(positions_T, np.float64)[:, None] * self.frequencies()[None, :]
        return np.cos(angle_TR) * self.magnitude, np.sin(angle_TR) * self.magnitude

    @property
    def magnitude(self) -> float:
        """What cosine and sine are multiplied by."""
        return 1.0 if self.scaling is None else self.scaling.magnitude


def scaling_of(keys, context: int) -> RopeScaling | None:
    """The scaling that a model's `keys` describe (greta_jax.config); None if they scale nothing.

    Raises ConfigError for an unknown type, and where llama.cpp and transformers read a key apart.
    """
    kind = keys.text("rope.scaling.type", SCALINGS, "linear")
    keys.unused.discard(f"{keys.architecture}.rope.scaling.finetuned")
    factor = keys.option("rope.scaling.factor", float, keys.option("rope.scale_linear", float))
    scaling = RopeScaling(
        kind,
        1.0 if factor is None or kind == "none" else factor,
        keys.option("rope.scaling.attn_factor", float, 1.0),
        keys.option("rope.scaling.original_context_length", int, context),
        keys.option("rope.scaling.yarn_beta_fast", float, 32.0),
        keys.option("rope.scaling.yarn_beta_slow", float, 1.0),
    )
    extrapolated = keys.option("rope.scaling.yarn_ext_factor", float, 1.0)
    keys.require(extrapolated == 1 or kind != "yarn", f"yarn_ext_factor {extrapolated} is not 1")
    own = RopeScaling(kind, scaling.factor).magnitude
    told = keys.option("rope.scaling.yarn_attn_factor", float, own)
    keys.require(
        abs(told - own) <= own * float(np.finfo(np.float32).eps),
        f"yarn_attn_factor {told}, which llama.cpp takes for {own} and transformers obeys",
    )
    return None if scaling == RopeScaling(kind, original_context=context) else scaling
