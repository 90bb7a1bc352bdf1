"""How close the bounds of greta_jax come to the errors that evaluations really make."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np

from greta_jax.bounds import OpPrecision, bound
from greta_jax.graph import FINAL_NORM, INPUTS, KV_SITES, LOGITS
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from greta_jax.replay import replay

KINDS = ("ordinary", "small", "wide", "cancelling", "growing", "subnormal", "sparse")
"""Made-up inputs; all but the first are adversarial in some way."""

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

    def declared(self, with_weights: bool) -> OpPrecision:
        """The same, as an engine declares it; a bf16 product rounds the weight first."""
        operand = self.dtype if with_weights and self.dtype != "float32" else None
        return OpPrecision(self.dtype, self.dtype, self.order, operand=operand, rescales=0)


def sites_of(oracle: Oracle) -> tuple[str, ...]:
    """Every site of this oracle's architecture."""
    return ("embed", *(op.site for op in (*oracle.ops, FINAL_NORM, LOGITS)))


def draw(oracle: Oracle, site: str, kind: str, rng, tokens: int, dtype: str) -> dict:
    """Inputs of one op for some tokens, exact in `dtype`."""
    row = {op.site: op for op in (*oracle.ops, FINAL_NORM, LOGITS)}.get(site)
    attends = site in ("attn.scores", "attn.probs", "attn.out")
    names = INPUTS[site] if row is None or attends else row.inputs
    rotated = any(name == "rotation" for name in names)
    values = {name: _draw(oracle, name, kind, rng, tokens) for name in names if name != "rotation"}
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


def table(oracle: Oracle, case: Case, tokens: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """By site: the largest ratio on ordinary inputs for each form of bound, and the worst of all.

    Keys: `running` (partial sums of the declared order), `any` (any order), `likely` (running, with
    a failure probability of 1e-9 an element), `worst` (running, adversarial inputs included).
    """
    found = {}
    for number, site in enumerate(sites_of(oracle)):
        rng = np.random.default_rng([seed, number])
        weights = bool({op.site: op for op in (*oracle.ops, LOGITS)}.get(site, LOGITS).weights)
        running = case.declared(weights)
        forms = {
            "running": running,
            "any": replace(running, order=None),
            "likely": replace(running, failure=1e-9),
        }
        inputs = draw(oracle, site, KINDS[0], rng, tokens, case.dtype)
        row = dict(zip(forms, ratios(oracle, site, inputs, case, *forms.values()), strict=True))
        others = [draw(oracle, site, kind, rng, tokens, case.dtype) for kind in KINDS[1:]]
        adverse = [ratios(oracle, site, one, case, running)[0] for one in others]
        found[site] = row | {"worst": max(row["running"], *adverse)}
    return found
