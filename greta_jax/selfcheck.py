"""Why the oracle may be believed: laws that any right answer obeys, checked on the model at hand.

Nothing here compares the oracle with itself computed the same way: a law relates two different
questions, and `extended` evaluates the ops in numpy's 80-bit arithmetic, written out anew.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from gguf import quants

from greta_jax.bounds import bound
from greta_jax.gguf.dequantize import dequantize, magnitude
from greta_jax.graph import INPUTS, evaluate
from greta_jax.graph import LAYER_OP as OPS
from greta_jax.model import Oracle
from greta_jax.precision import Policy, smallest_normal, unit_roundoff
from greta_jax.replay import replay
from greta_jax.weights import MODEL_TENSORS

MIN_NORMAL = smallest_normal("float32")
U64 = unit_roundoff("float64")
DOUBLE = {"store": "float64", "accumulate": "float64"}
T, S = 5, 100
"""Tokens and cached tokens of the made-up inputs: more than a bucket and than 64 keys."""

PROMPT, QUICK_PROMPT = 24, 6


@dataclass(frozen=True)
class Finding:
    """One law: the largest error seen over the floor that rounding explains (at most 1 passes)."""

    law: str
    ratio: float

    @property
    def passed(self) -> bool:
        """True if rounding explains the difference; False also for NaN."""
        return bool(self.ratio <= 1)

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.law}: {self.ratio:.3g} of the floor"


def selfcheck(oracle: Oracle, quick: bool = False, seed: int = 0) -> list[Finding]:
    """Every law, in fp64 whatever the oracle's policy. `quick` shortens the prompt of the one law
    that runs the whole model. Raises PrecisionError if jax x64 is off."""
    double = oracle.with_policy(Policy.fp64())
    question = Question(double, np.random.default_rng(seed), quick)
    return [Finding(law.__name__, float(law(question))) for law in LAWS]


class Question:
    """The oracle in fp64, and made-up tensors of its model's shapes."""

    def __init__(self, oracle: Oracle, rng: np.random.Generator, quick: bool):
        self.oracle, self.rng, self.quick = oracle, rng, quick
        c = oracle.config
        self.q_TNH = rng.standard_normal((T, c.heads, c.head_dim))
        self.k_SKH, self.v_SKH = rng.standard_normal((2, S, c.kv_heads, c.head_dim))

    def attend(self, site: str = "attn.out", **changes) -> np.ndarray:
        """Attention of layer 0 on the made-up tensors, some of them changed."""
        return replay(self.oracle, site, 0, self._inputs(site, changes))

    def floor(self, site: str = "attn.out", **changes) -> np.ndarray:
        """What fp64 rounding explains of a difference of two evaluations of attention."""
        return 2 * bound(self.oracle, site, 0, self._inputs(site, changes), DOUBLE)

    def _inputs(self, site: str, changes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        inputs = {"attn.q_rope": self.q_TNH, "kv.k": self.k_SKH, "kv.v": self.v_SKH}
        inputs |= {name.replace("__", "."): value for name, value in changes.items()}
        wanted = {*INPUTS[site], "positions"}
        return {name: value for name, value in inputs.items() if name in wanted}


def _ratio(ref: np.ndarray, got: np.ndarray, floor) -> float:
    same = np.isneginf(ref) & np.isneginf(got)
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0, np.abs(got - ref))
    return float(np.max(error / floor))


def prefill_equals_prefill_then_decode(q: Question) -> float:
    """The law that replaces comparing different tokens: prefill(n) = prefill(n-1), decode(1)."""
    n = min(QUICK_PROMPT if q.quick else PROMPT, q.oracle.config.context)
    ids = q.rng.integers(0, q.oracle.config.vocab, n)
    whole = q.oracle.prefill(ids).logits_TV[-1]
    last = q.oracle.decode(q.oracle.prefill(ids[:-1]).cache, int(ids[-1])).logits_TV[0]
    c = q.oracle.config
    roundings = c.layers * (4 * c.dim + c.ffn + c.heads * c.head_dim + n)
    return _ratio(whole, last, roundings * U64 * np.abs(whole).max())


def grouped_heads_equal_replicated_heads(q: Question) -> float:
    """GQA is multi-head attention with each kv head given G times."""
    c = q.oracle.config
    groups = c.heads // c.kv_heads
    k_SNH, v_SNH = (np.repeat(x, groups, axis=1) for x in (q.k_SKH, q.v_SKH))
    cfg, positions = replace(c.layer(0), kv_heads=c.heads), np.arange(S - T, S, dtype=np.int32)
    how = q.oracle.policy.at("attn.scores", 0)
    score = evaluate(OPS["attn.scores"], how, cfg, (q.q_TNH, k_SNH, positions), ())
    prob = evaluate(OPS["attn.probs"], how, cfg, (score,), ())
    got = evaluate(OPS["attn.out"], how, cfg, (prob, v_SNH, positions), ())
    return _ratio(q.attend(), np.asarray(got), q.floor())


def scores_depend_on_relative_position(q: Question) -> float:
    """Rotating query and keys by 1,000 further positions changes no score."""
    c = q.oracle.config
    shift = min(1000, c.context - S)
    scores = []
    for start in (0, shift):
        rotated = [
            replay(q.oracle, site, 0, {source: x, "positions": positions + start})
            for site, source, x, positions in (
                ("attn.q_rope", "attn.q", q.q_TNH, np.arange(S - T, S)),
                ("attn.k_rope", "attn.k", q.k_SKH, np.arange(S)),
            )
        ]
        scores.append(q.attend("attn.scores", attn__q_rope=rotated[0], kv__k=rotated[1]))
    size = np.abs(q.q_TNH).sum(-1).max() * np.abs(q.k_SKH).max()
    return _ratio(scores[0], scores[1], 4 * (S + shift) * U64 * size)


def order_of_cached_positions_is_nothing(q: Question) -> float:
    """Permuting slots, rotated keys and values together, does not change what sees them all."""
    last = {"attn__q_rope": q.q_TNH[-1:]}
    order = q.rng.permutation(S)
    got = q.attend(**last, kv__k=q.k_SKH[order], kv__v=q.v_SKH[order])
    return _ratio(q.attend(**last), got, q.floor(**last))


def attention_weights_sum_to_one(q: Question) -> float:
    """And none is negative."""
    prob_TNS = q.attend("attn.probs")
    negative = np.inf if np.any(prob_TNS < 0) else 0
    return max(float(np.abs(prob_TNS.sum(-1) - 1).max() / (2 * S * U64)), negative)


def equal_keys_share_attention_equally(q: Question) -> float:
    """With all keys alike, a query averages every visible value: each key counts, near and far."""
    k_SKH = np.repeat(q.k_SKH[:1], S, axis=0)
    got = q.attend(kv__k=k_SKH)
    c = q.oracle.config
    means_TKH = np.stack([q.v_SKH[: S - T + t + 1].mean(axis=0) for t in range(T)])
    ref = np.repeat(means_TKH, c.heads // c.kv_heads, axis=1)
    return _ratio(ref, got, q.floor(kv__k=k_SKH))


def attention_is_linear_in_values(q: Question) -> float:
    """attend(a V + b W) = a attend(V) + b attend(W)."""
    other = q.rng.standard_normal(q.v_SKH.shape)
    whole = q.attend(kv__v=2 * q.v_SKH - 3 * other)
    parts = 2 * q.attend() - 3 * q.attend(kv__v=other)
    floor = 2 * q.floor() + 3 * q.floor(kv__v=other) + q.floor(kv__v=2 * q.v_SKH - 3 * other)
    return _ratio(whole, parts, floor)


def unseen_slots_do_not_matter(q: Question) -> float:
    """NaN in every slot after the queries' positions changes nothing."""
    positions = np.arange(T) + 20
    ref = q.attend(positions=positions)
    k_SKH, v_SKH = q.k_SKH.copy(), q.v_SKH.copy()
    k_SKH[20 + T :], v_SKH[20 + T :] = np.nan, np.nan
    got = q.attend(positions=positions, kv__k=k_SKH, kv__v=v_SKH)
    return _ratio(ref, got, U64)


def rotation_keeps_length(q: Question) -> float:
    """RoPE is a rotation of each pair."""
    got = replay(q.oracle, "attn.q_rope", 0, {"attn.q": q.q_TNH, "positions": np.arange(T) + 77})
    ref = np.linalg.norm(q.q_TNH, axis=-1)
    return _ratio(ref, np.linalg.norm(got, axis=-1), 4 * q.q_TNH.shape[-1] * U64 * ref)


def attention_agrees_with_extended_precision(q: Question) -> float:
    """Scores, softmax and values in numpy's long double, head by head and key by key."""
    c, wide = q.oracle.config, np.longdouble
    ref = np.zeros(q.q_TNH.shape, wide)
    for t in range(T):
        for n in range(c.heads):
            seen = S - T + t + 1
            keys, values = (x[:seen, n // (c.heads // c.kv_heads)] for x in (q.k_SKH, q.v_SKH))
            score = keys.astype(wide) @ q.q_TNH[t, n].astype(wide) / np.sqrt(wide(c.head_dim))
            weight = np.exp(score - score.max())
            ref[t, n] = weight @ values.astype(wide) / weight.sum()
    return _ratio(ref.astype(np.float64), q.attend(), q.floor())


def pointwise_ops_agree_with_extended_precision(q: Question) -> float:
    """Norm, rotation and SwiGLU in numpy's long double."""
    c, wide = q.oracle.config, np.longdouble
    x_TD = q.rng.standard_normal((T, c.dim))
    scale_D = np.asarray(q.oracle.weights.load("attn_norm_D", 0)).astype(wide)
    mean = np.mean(np.square(x_TD.astype(wide)), axis=-1, keepdims=True)
    gate_TF, up_TF = q.rng.standard_normal((2, T, c.ffn)) * 4
    wide_gate = gate_TF.astype(wide)
    pairs = [
        ("attn.norm", {"resid.in": x_TD}, x_TD / np.sqrt(mean + wide(c.rms_eps)) * scale_D),
        (
            "ffn.act",
            {"ffn.gate": gate_TF, "ffn.up": up_TF},
            wide_gate / (1 + np.exp(-wide_gate)) * up_TF,
        ),
    ]
    worst = 0.0
    for site, inputs, ref in pairs:
        got = replay(q.oracle, site, 0, inputs)
        floor = 2 * bound(q.oracle, site, 0, inputs, DOUBLE)
        worst = max(worst, _ratio(ref.astype(np.float64), got, floor))
    return worst


def a_projection_agrees_with_extended_precision(q: Question) -> float:
    """Some rows of attn.q, each product and sum in long double."""
    c, wide = q.oracle.config, np.longdouble
    x_TD = q.rng.standard_normal((T, c.dim))
    weight_ED = np.asarray(q.oracle.weights.load("q_NHD", 0)).reshape(-1, c.dim)
    rows = q.rng.integers(0, len(weight_ED), 16)
    ref = (x_TD.astype(wide) @ weight_ED[rows].astype(wide).T).astype(np.float64)
    inputs = {"attn.norm": x_TD}
    got = replay(q.oracle, "attn.q", 0, inputs).reshape(T, -1)[:, rows]
    floor = 2 * bound(q.oracle, "attn.q", 0, inputs, DOUBLE).reshape(T, -1)[:, rows]
    return _ratio(ref, got, floor)


def weights_are_decoded_as_gguf_does(q: Question) -> float:
    """The first and the last row of every weight of layer 0, against the gguf package: both round
    at most twice in fp32."""
    weights, worst = q.oracle.weights, 0.0
    for name in weights.table:
        layer = -1 if name in MODEL_TENSORS else 0
        raw = weights.raw_rows(name, layer)[[0, -1]]
        dtype = weights.file.info(weights.tensor_name(name, layer)).dtype
        ref = quants.dequantize(raw, dtype).astype(np.float64)
        got = np.asarray(dequantize(raw, dtype, "float64"), np.float64)
        size = np.asarray(magnitude(raw, dtype), np.float64)
        floor = 4 * unit_roundoff("float32") * size.reshape(ref.shape) + MIN_NORMAL
        worst = max(worst, _ratio(ref, got.reshape(ref.shape), floor))
    return worst


LAWS: tuple[Callable[[Question], float], ...] = (
    prefill_equals_prefill_then_decode,
    grouped_heads_equal_replicated_heads,
    scores_depend_on_relative_position,
    order_of_cached_positions_is_nothing,
    attention_weights_sum_to_one,
    equal_keys_share_attention_equally,
    attention_is_linear_in_values,
    unseen_slots_do_not_matter,
    rotation_keeps_length,
    attention_agrees_with_extended_precision,
    pointwise_ops_agree_with_extended_precision,
    a_projection_agrees_with_extended_precision,
    weights_are_decoded_as_gguf_does,
)
