"""Precision is a value: what is stored in which dtype, and where and how the arithmetic happens."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from greta_jax.errors import PrecisionError

FLOATS = ("float64", "float32", "bfloat16", "float16")
STORES = (*FLOATS, "float8_e4m3fnuz", "float8_e5m2fnuz", "int8")
"""Storage formats. float8 saturates, with scale 1; int8 has an fp32 scale for each last axis."""

ORDERS = ("native", "sequential", "pairwise", "split:<C>", "mfma:<kind>")
"""How sums run: XLA's own way; one term after the other; a binary tree; <C> contiguous sequential
parts, then those; CDNA3 matrix-core groups on operands rounded to <kind> (matrix products only)."""

EXPS = ("native", "polynomial")
"""XLA's exponential, or ours: reduction by ln 2, a polynomial, ldexp, as a kernel would."""

OWN_DTYPE = {"attn.scores": "score", "attn.probs": "softmax", "attn.out": "pv"}
"""Sites whose arithmetic has a field of its own in the Policy."""

MATRIX_SITES = (
    *("attn.q", "attn.k", "attn.v", "attn.scores", "attn.out", "attn.proj"),
    *("ffn.router", "ffn.gate", "ffn.up", "ffn.experts", "ffn.down", "logits"),
)
"""Sites that are matrix products, whose sums any `order` rules."""

OTHER_SUM_SITES = (
    *("attn.norm", "ffn.norm", "final.norm", "attn.q_norm", "attn.k_norm"),
    *("attn.post_norm", "ffn.post_norm", "attn.probs", "ffn.route"),
)
"""Sites with a mean or a softmax's sum, which every order rules but a matrix core's."""


@dataclass(frozen=True)
class Arithmetic:
    """How one op computes: the resolved part of a Policy, hashable, seen by greta_jax.ops."""

    compute: str
    store: str
    weight: str
    order: str = "native"
    exp: str = "native"
    probs: str | None = None


@dataclass(frozen=True)
class Rule:
    """Changes to a Policy at some sites (None: all) of the layers `first` to `last` inclusive.

    Without `first` and `last` it holds everywhere; with them, in those layers only.
    """

    changes: tuple[tuple[str, Any], ...]
    sites: tuple[str, ...] | None = None
    first: int | None = None
    last: int | None = None

    def holds(self, site: str, layer: int) -> bool:
        """True at that site and layer."""
        after = self.first is None or layer >= self.first
        before = self.last is None or 0 <= layer <= self.last
        return after and before and (self.sites is None or site in self.sites)


@dataclass(frozen=True)
class Policy:
    """Dtypes and orders of one evaluation of the model, as plain strings.

    weight: storage of the weights (the GGUF's fp32 dequantised values, rounded to it).
    activation: storage of every site's tensor. kv: storage of the KV cache.
    compute: dtype of the arithmetic inside an op, accumulation included; score, softmax and pv
    override it for attention's three ops. order: of every sum of products, mean and softmax;
    mfma:<kind> of the products alone, since a matrix core adds nothing but products: the means of
    norms and the sums of softmax run on vector ALUs on this chip, and stay in XLA's order here.
    probs: what probabilities are rounded to before they meet V. exp: which exponential.
    rules: changes by site and layer, later ones over earlier.
    """

    name: str
    weight: str
    activation: str
    kv: str
    compute: str
    score: str | None = None
    softmax: str | None = None
    pv: str | None = None
    order: str = "native"
    probs: str | None = None
    exp: str = "native"
    rules: tuple[Rule, ...] = ()

    def __post_init__(self):
        for field in ("weight", "activation", "kv", "probs"):
            self._check(field, STORES)
        for field in ("compute", "score", "softmax", "pv"):
            self._check(field, FLOATS)
        self._check("exp", EXPS)
        check_order(self.order)
        for rule in self.rules:
            replace(self, rules=(), **self._fields_of(rule))

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

    def at(self, site: str, layer: int) -> Arithmetic:
        """What holds for one op."""
        here = self
        for rule in self.rules:
            if rule.holds(site, layer):
                here = replace(here, rules=(), **self._fields_of(rule))
        own = OWN_DTYPE.get(site)
        compute = (getattr(here, own) if own else None) or here.compute
        store = here.kv if site in ("kv.k", "kv.v") else here.activation
        return Arithmetic(compute, store, here.weight, here._order(site), here.exp, here.probs)

    def _order(self, site: str) -> str:
        if site in MATRIX_SITES:
            return self.order
        core = self.order.startswith("mfma")
        return self.order if site in OTHER_SUM_SITES and not core else "native"

    @property
    def kv_carrier(self) -> str:
        """The dtype of the cache's arrays: `kv` itself, or what holds its rounded values."""
        ruled = any("kv" in dict(rule.changes) for rule in self.rules)
        return self.compute if ruled else carrier(self.kv, self.compute)

    def as_record(self) -> dict[str, Any]:
        """Plain values for a JSON record."""
        return asdict(self)

    def __str__(self) -> str:
        shown = ((f.name, getattr(self, f.name), f.default) for f in fields(self))
        text = (f"{k}={v}" for k, v, default in shown if k != "name" and v != default)
        return f"{self.name}({', '.join(text)})"

    def _check(self, field: str, allowed: tuple[str, ...]) -> None:
        value = getattr(self, field)
        if value is None and field in ("score", "softmax", "pv", "probs"):
            return
        if value not in allowed:
            raise PrecisionError(
                f"{field} {value!r} is unknown",
                where=f"Policy {self.name}",
                remedy=f"use one of {', '.join(allowed)}",
            )
        if value == "float64":
            require_x64(f"Policy {self.name}")

    def _fields_of(self, rule: Rule) -> dict[str, Any]:
        changes = dict(rule.changes)
        unknown = set(changes) - {f.name for f in fields(self)} | ({"rules"} & set(changes))
        if unknown:
            raise PrecisionError(
                f"a rule changes {sorted(unknown)}, which no Policy has",
                where=f"Policy {self.name}",
                remedy="change fields such as compute, kv or order",
            )
        return changes


def check_order(order: str) -> None:
    """Raises PrecisionError for a reduction order that does not exist."""
    kind, _, value = order.partition(":")
    fits = {
        "split": value.isdigit() and int(value) > 0,
        "mfma": value in ("f16", "bf16", "xf32", "fp8", "bf8", "f32"),
    }.get(kind, order in ("native", "sequential", "pairwise"))
    if not fits:
        raise PrecisionError(f"order {order!r} is unknown", remedy=f"use {', '.join(ORDERS)}")


def carrier(store: str, compute: str) -> str:
    """The dtype of arrays that hold values rounded to `store`."""
    return store if store in FLOATS else compute


def stored(x: jax.Array, store: str) -> jax.Array:
    """`x` rounded to a storage format, in its carrier dtype."""
    if store in FLOATS:
        return x.astype(store)
    if store == "int8":
        scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True).astype(jnp.float32) / 127
        scale = jnp.where(scale == 0, 1, scale).astype(x.dtype)
        return jnp.round(x / scale) * scale
    largest = jnp.asarray(float(jnp.finfo(store).max), x.dtype)
    return jnp.clip(x, -largest, largest).astype(store).astype(x.dtype)


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
