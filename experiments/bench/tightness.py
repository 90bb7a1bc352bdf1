"""How close the bounds of greta_jax come to the errors that evaluations really make."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np

from greta_jax import mfma
from greta_jax.bounds import OpPrecision, bound
from greta_jax.graph import FINAL_NORM, INPUTS, KV_SITES, LOGITS
from greta_jax.model import Oracle
from greta_jax.precision import MATRIX_SITES, Policy
from greta_jax.replay import replay

KINDS = ("ordinary", "small", "wide", "cancelling", "growing", "subnormal", "sparse")
"""Made-up inputs; all but the first are adversarial in some way."""

LOOSEST = 100
"""How many times the largest error a running bound may be, on ordinary inputs: what was asked."""

ATTENTION = ("attn.scores", "attn.probs", "attn.out")
FAILURE = 1e-9
SLOTS = (64, 1024, 4096)
QUERIES = 4
FLUSHED_BELOW = 2.0**-120
LAYER = 0


@dataclass(frozen=True)
class Case:
    """One evaluation: dtype of storage and arithmetic, order of sums."""

    dtype: str
    order: str

    @property
    def policy(self) -> Policy:
        """Everything in that dtype and order."""
        return replace(
            Policy.uniform(self.dtype), name=f"{self.dtype} {self.order}", order=self.order
        )

    @property
    def on_cores(self) -> bool:
        """Whether matrix cores make the products; they round the operands themselves."""
        return self.order.startswith("mfma")

    def declared(self, with_weights: bool) -> OpPrecision:
        """The same, as an engine declares it; a bf16 product rounds the weight first."""
        rounds = with_weights and self.dtype != "float32" and not self.on_cores
        operand = self.dtype if rounds else None
        return OpPrecision(self.dtype, self.dtype, self.order, operand=operand, rescales=0)


def sites_of(oracle: Oracle) -> tuple[str, ...]:
    """Every site of this oracle's architecture."""
    return ("embed", *(op.site for op in (*oracle.ops, FINAL_NORM, LOGITS)))


def draw(
    oracle: Oracle, site: str, kind: str, rng, tokens: int, dtype: str, slots: int | None = None
) -> dict:
    """Inputs of one op for some tokens, exact in `dtype`; a cache has `slots` (None: as many)."""
    row = {op.site: op for op in (*oracle.ops, FINAL_NORM, LOGITS)}.get(site)
    names = INPUTS[site] if row is None or site in ATTENTION else row.inputs
    rotated = any(name == "rotation" for name in names)
    rows = {name: slots if slots and name in KV_SITES else tokens for name in names}
    values = {n: _draw(oracle, n, kind, rng, rows[n]) for n in names if n != "rotation"}
    if rotated:
        values["positions"] = np.sort(rng.integers(0, oracle.config.context, tokens))
    return {
        name: value.astype(jnp.dtype(dtype)).astype(value.dtype)
        if value.dtype == np.float64
        else value
        for name, value in values.items()
    }


def _draw(oracle: Oracle, name: str, kind: str, rng, tokens: int) -> np.ndarray:
    c = oracle.config
    if name == "token_ids":
        return rng.integers(0, c.vocab, tokens)
    heads = {"attn.q": c.heads, "attn.q_norm": c.heads, "attn.q_rope": c.heads}
    heads |= {"attn.out": c.heads, "attn.k": c.kv_heads, "attn.k_norm": c.kv_heads}
    heads |= {"attn.k_rope": c.kv_heads, "attn.v": c.kv_heads}
    heads |= dict.fromkeys(KV_SITES, c.kv_heads)
    by_expert = (c.experts,) if c.experts else ()
    wide = dict.fromkeys(("ffn.gate", "ffn.up", "ffn.act"), (*by_expert, c.ffn))
    wide |= {"ffn.router": by_expert, "ffn.route": by_expert, "ffn.experts": (*by_expert, c.dim)}
    own = (heads[name], c.head_dim) if name in heads else wide.get(name, (c.dim,))
    x = rng.standard_normal((tokens, *own))
    scale = {
        "small": 1e-3,
        "wide": 2.0 ** rng.integers(-8, 8, x.shape),
        "growing": 2.0 ** (8 * np.linspace(-1, 1, x.shape[-1])),
        "subnormal": FLUSHED_BELOW * 2.0 ** rng.integers(-12, 4, x.shape),
        "sparse": rng.random(x.shape) < 0.1,
    }.get(kind, 1.0)
    x = x * scale
    if kind == "cancelling":
        # Every other element takes the last one back, but for a thousandth.
        x[..., 1::2] = -x[..., : x.shape[-1] // 2 * 2 : 2] * (1 + 1e-3)
    return x


def ratios(oracle: Oracle, site: str, inputs: dict, case: Case, *declared: OpPrecision) -> list:
    """Largest error over its bound, for each declaration; inf if a finite result is not so."""
    layer = LAYER if site in {op.site for op in oracle.ops} else -1
    ref = replay(oracle, site, layer, inputs)
    got = replay(oracle.with_policy(case.policy), site, layer, inputs).astype(np.float64)
    visible = np.isfinite(ref)
    if not np.array_equal(visible, np.isfinite(got)):
        return [np.inf] * len(declared)
    error = np.where(visible, np.abs(np.where(visible, got, 0) - np.where(visible, ref, 0)), 0)
    found = []
    for one in declared:
        limit = bound(oracle, site, layer, inputs, one)
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append(float(np.max(np.where(error == 0, 0, error / limit))))
    return found


@dataclass(frozen=True)
class Tightness:
    """Largest error over its bound of one op, `worst` over every kind of input.

    On ordinary inputs: `running` (partial sums of the declared order), `any` (any order), `likely`
    (running, with a failure probability of 1e-9 an element).
    """

    running: float
    any: float
    likely: float
    worst: float

    @property
    def exceeded(self) -> bool:
        """No evaluation may be beyond a bound; NaN is."""
        return not max(self.any, self.likely, self.worst) <= 1

    @property
    def loose(self) -> bool:
        """Too far from the largest error, if any ordinary result has one."""
        return 0 < self.running < 1 / LOOSEST


def measure(oracle: Oracle, site: str, case: Case, tokens: int, seed=0, slots=None) -> Tightness:
    """One op on `tokens` inputs of each kind; attention on a cache of `slots` if given."""
    rng = np.random.default_rng([seed, sites_of(oracle).index(site), slots or 0])
    weights = bool({op.site: op for op in (*oracle.ops, LOGITS)}.get(site, LOGITS).weights)
    running = case.declared(weights)
    operand = mfma.KINDS[running.core].dtype if running.core else running.operand
    # No dtype is what xf32 leaves of an fp32: only its order says so.
    any_order = running if running.core == "xf32" else replace(running, order=None, operand=operand)
    forms = {
        "running": running,
        "any": any_order,
        "likely": replace(running, failure=FAILURE),
    }
    found, worst = {}, 0.0
    for kind in KINDS:
        inputs = draw(oracle, site, kind, rng, tokens, case.dtype, slots)
        asked = {"running": running} if found else forms
        one = dict(zip(asked, ratios(oracle, site, inputs, case, *asked.values()), strict=True))
        found, worst = found or one, float(np.maximum(worst, one["running"]))
    return Tightness(**found, worst=worst)


def lines(oracle: Oracle, case: Case, tokens: int, seed: int = 0) -> Iterator[tuple]:
    """Of every op that the case's order rules: its name and Tightness."""
    sites = [site for site in sites_of(oracle) if site in MATRIX_SITES or not case.on_cores]
    yield from ((site, measure(oracle, site, case, tokens, seed)) for site in sites)


def attention_lines(oracle: Oracle, case: Case, seed: int = 0) -> Iterator[tuple]:
    """The same of attention's ops on caches of SLOTS."""
    for slots in SLOTS:
        for site in ATTENTION:
            if site in MATRIX_SITES or not case.on_cores:
                yield f"{site}, S = {slots}", measure(oracle, site, case, QUERIES, seed, slots)
