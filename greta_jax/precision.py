"""Precision is a value: what is stored in which dtype and where the arithmetic happens."""

from dataclasses import asdict, dataclass

import jax
import jax.numpy as jnp
import numpy as np

from greta_jax.errors import PrecisionError

DTYPES = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Policy:
    """Dtypes of one evaluation of the model, as plain strings.

    weight: storage of the weights (the GGUF's fp32 dequantised values, cast to it).
    activation: storage of every site's tensor.
    kv: storage of the KV cache.
    compute: dtype of the arithmetic inside an op, accumulation included.
    """

    name: str
    weight: str
    activation: str
    kv: str
    compute: str

    def __post_init__(self):
        for field in ("weight", "activation", "kv", "compute"):
            dtype = getattr(self, field)
            if dtype not in DTYPES:
                raise PrecisionError(
                    f"{field} dtype {dtype!r} is unknown",
                    where=f"Policy {self.name}",
                    remedy=f"use one of {', '.join(DTYPES)}",
                )
            if dtype == "float64":
                require_x64(f"Policy {self.name}")

    @classmethod
    def uniform(cls, dtype: str) -> "Policy":
        """Everything in one dtype."""
        short = {"float64": "fp64", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
        return cls(short.get(dtype, dtype), dtype, dtype, dtype, dtype)

    @classmethod
    def fp64(cls) -> "Policy":
        """The reference: everything in binary64. Raises PrecisionError unless jax x64 is on."""
        return cls.uniform("float64")

    @classmethod
    def fp32(cls) -> "Policy":
        """Everything in binary32, in the order XLA chooses."""
        return cls.uniform("float32")

    def as_record(self) -> dict[str, str]:
        """Plain strings for a JSON record."""
        return asdict(self)

    def __str__(self) -> str:
        fields = (f"{k}={v}" for k, v in asdict(self).items() if k != "name")
        return f"{self.name}({', '.join(fields)})"


def require_x64(who: str) -> None:
    """Raises PrecisionError when jax would silently turn binary64 into binary32."""
    if not jax.config.jax_enable_x64:
        raise PrecisionError(
            "binary64 asked for while jax x64 is off",
            where=who,
            remedy='call jax.config.update("jax_enable_x64", True) before the first array',
        )


def unit_roundoff(dtype: str) -> float:
    """Half the spacing of `dtype` at 1: the largest relative error of one rounding to nearest."""
    return float(jnp.finfo(dtype).eps) / 2


def smallest_normal(dtype: str) -> float:
    """Below this, hardware that flushes subnormals loses the whole value."""
    return float(np.asarray(jnp.finfo(dtype).smallest_normal, dtype=np.float64))
