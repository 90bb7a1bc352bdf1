"""What an engine declares about the arithmetic of one op, and what its roundings may then do."""

import math
from dataclasses import dataclass, fields
from typing import Any

import jax.numpy as jnp
import numpy as np

from greta_jax.errors import PrecisionError
from greta_jax.mfma import KINDS
from greta_jax.precision import STORES, check_order, smallest_normal, unit_roundoff

EXP_ULP = 4
"""Default error of an exponential or tanh in ulp: a software exp2 keeps well under it."""


@dataclass(frozen=True)
class OpPrecision:
    """What an engine declares about one op.

    store, accumulate: dtypes of the result and of the arithmetic.
    order: how its sums run, as in a Policy; the bound then follows the partial sums. None: unknown.
    mfma:<kind> is of matrix products, k ascending: other sums then run in any order.
    chain: with an unknown order, the longest chain of additions that a term of a sum goes through
    (None: the sum's length, that is, any order). operand: dtype that the factors of products are
    rounded to first (None: used as given, or what a matrix core of that order takes).
    exp_ulp: error of its exponential, or tanh. rescales: how often an online softmax may rescale
    its partial sums (None: at every slot; 0: the maximum is known before the sum starts).
    angle: dtype of the angles of a rotation, their frequencies made as powers or as repeated
    products (None: fp64, and only the table of cosines and sines is rounded).
    bits: name of an arithmetic that greta_jax.determined predicts to the last bit.
    scale: of a cache, what each kv head's stored numbers are multiplied by: powers of two, which
    round nowhere (None: 1).
    failure: None for the certain bound; else the probability, an element, that roundings that are
    independent and of mean zero exceed it (Higham and Mary 2019, theorem 2.4: sqrt(n) for n).
    """

    store: str = "float32"
    accumulate: str = "float32"
    order: str | None = None
    chain: int | None = None
    operand: str | None = None
    exp_ulp: float = EXP_ULP
    rescales: int | None = None
    angle: str | None = None
    bits: str | None = None
    failure: float | None = None
    scale: tuple[float, ...] | None = None

    def __post_init__(self):
        if self.store not in STORES:
            raise PrecisionError(f"store {self.store!r} is unknown", remedy=f"use one of {STORES}")
        if self.order is not None:
            check_order(self.order)
            if self.order == "native":
                raise PrecisionError(
                    "no bound follows the partial sums of order 'native', which XLA chooses",
                    remedy="declare sequential, pairwise, split:<C> or mfma:<kind>; or none",
                )
        if wrong := [s for s in self.scale or () if math.frexp(s)[0] != 0.5]:
            raise PrecisionError(
                f"no bound is known for scale {wrong[0]}, which rounds at every use",
                remedy="use powers of two",
            )

    @classmethod
    def of(cls, declared: "OpPrecision | dict[str, Any]") -> "OpPrecision":
        """From a mapping of plain strings. Raises PrecisionError for an unknown key or dtype."""
        if isinstance(declared, cls):
            return declared
        unknown = set(declared) - {f.name for f in fields(cls)}
        if unknown:
            raise PrecisionError(
                f"unknown precision keys {sorted(unknown)}",
                remedy=f"known are {', '.join(f.name for f in fields(cls))}",
            )
        return cls(**declared)

    @property
    def u(self) -> float:
        """Unit roundoff of the arithmetic, plus that of the fp64 reference itself."""
        return unit_roundoff(self.accumulate) + unit_roundoff("float64")

    @property
    def core(self) -> str | None:
        """The kind of matrix core whose groups the order follows; f32 has none, it is a chain."""
        kind, _, value = (self.order or "").partition(":")
        return value if kind == "mfma" and value != "f32" else None

    @property
    def operand_dtype(self) -> str | None:
        """What the factors of products are rounded to; xf32 drops the low bits of its fp32."""
        return self.operand or (None if self.core is None else KINDS[self.core].dtype)

    @property
    def tiny(self) -> float:
        """What one operation may lose to flushing a subnormal."""
        return smallest_normal(self.accumulate)

    @property
    def largest(self) -> float:
        """Beyond this, the arithmetic overflows."""
        return float(jnp.finfo(self.accumulate).max)

    def gamma(self, roundings: float) -> float:
        """n*u/(1-n*u): relative error after that many roundings; inf where the theory ends."""
        nu = roundings * self.u
        return nu / (1 - nu) if nu < 1 else math.inf

    def growth(self, roundings: int) -> float:
        """(1+u)^n - 1: how much that many roundings may enlarge what is already an error."""
        return math.expm1(roundings * math.log1p(self.u))

    def sum_error(self, terms: int, extra: int = 0) -> float:
        """Relative error, on sum|a||b|, of a dot product with `extra` roundings beside its own.

        In any order (n-1)u for the sum, however long (Jeannerod and Rump 2013, Improved error
        bounds for inner products), and u for a product. Through a chain of h roundings, (1+u)^h - 1
        (Higham, section 3.1).
        """
        error = (1 + (terms - 1) * self.u) * (1 + self.growth(1 + extra)) - 1
        chain = terms
        if self.chain is not None and self.chain < terms:
            chain = self.chain
            error = min(error, self.growth(chain + max(extra, 0)))
        if self.failure is None:
            return error
        roundings = max(chain + extra, 1)
        exponent = self.spread(roundings) * math.sqrt(roundings) * self.u
        exponent = exponent / (1 - self.u) + roundings * self.u**2 / (1 - self.u)
        return min(math.expm1(min(exponent, 700)), error)

    def spread(self, roundings: int) -> float:
        """How many root mean squares the declared probability of failure allows a sum of errors."""
        return math.sqrt(2 * math.log(2 * roundings / self.failure))

    def stored(self, ref: np.ndarray, error: np.ndarray) -> np.ndarray:
        """The error after the result is rounded to its storage; inf where it may overflow.

        Of a scaled cache, ref is [..., K, H].
        """
        size = np.abs(ref) + error
        if self.store == "int8":
            # Half a step of the scale; it, the quotient and the product round in the arithmetic.
            # A scale that is flushed loses everything.
            step = size.max(axis=-1, keepdims=True) / 127 * (1 + 4 * unit_roundoff("float32"))
            return error + step * (0.5 + 127 * 4 * self.u) + 128 * smallest_normal("float32")
        info = jnp.finfo(self.store)
        # A format of fp32's range is flushed with it; in a narrower one subnormals are kept.
        flushed = smallest_normal(self.store) <= smallest_normal("float32")
        least = info.smallest_normal if flushed else info.smallest_subnormal
        rounding = unit_roundoff(self.store) + unit_roundoff("float64")
        place = np.where(size > 0, np.ldexp(0.5, np.frexp(size)[1]), 0)
        unit = 1.0 if self.scale is None else np.asarray(self.scale)[:, None]
        rounded = error + rounding * place + unit * float(np.asarray(least, np.float64))
        largest = unit * float(info.max)
        if self.store.startswith("float8"):
            return rounded + np.maximum(size - largest, 0)
        return np.where(size > largest, np.inf, rounded)
