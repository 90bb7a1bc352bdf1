"""Why the oracle may be believed: laws that any right answer obeys, checked on the model at hand.

Nothing here compares the oracle with itself computed the same way: a law relates two different
questions, and greta_jax.multiprecision evaluates the ops in 40 digits, written out anew.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from gguf import quants

from greta_jax import multiprecision
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
DOUBLE = {"store": "float64", "accumulate": "float64", "rescales": 0}
FAR = 1000
"""A position, if the model's context reaches it, where an angle in fp32 would be wrong."""
T, S = 5, 100
"""Tokens and cached tokens of the made-up inputs: more than a bucket and than 64 keys."""

PROMPT = 24


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
    """Every law, in fp64 whatever the oracle's policy. `quick` leaves out the one that runs the
    whole model, for those who check it on their own prompt. Raises PrecisionError if jax x64 is
    off."""
    double = oracle.with_policy(Policy.fp64())
    question = Question(double, np.random.default_rng(seed))
    laws = LAYER_LAWS if quick else (prefill_equals_prefill_then_decode, *LAYER_LAWS)
    return [Finding(law.__name__, float(law(question))) for law in laws]


class Question:
    """The oracle in fp64, and made-up tensors of its model's shapes."""

    def __init__(self, oracle: Oracle, rng: np.random.Generator):
        self.oracle, self.rng = oracle, rng
        c = oracle.config
        self.cfg = c.layer(0)
        self.q_TNH = rng.standard_normal((T, c.heads, c.head_dim))
        self.k_SKH, self.v_SKH = rng.standard_normal((2, S, c.kv_heads, c.head_dim))

    def attend(self, site: str = "attn.out", **changes) -> np.ndarray:
        """Attention of layer 0 on the made-up tensors, some of them changed."""
        return replay(self.oracle, site, 0, self._inputs(site, changes))

    def floor(self, site: str = "attn.out", **changes) -> np.ndarray:
        """What fp64 rounding explains of a difference of two evaluations of attention."""
        return 2 * bound(self.oracle, site, 0, self._inputs(site, changes), DOUBLE)

    def visible(self, t: int) -> slice:
        """The slots that query t of the made-up ones sees."""
        last = S - T + t + 1
        return slice(0 if self.cfg.window is None else max(last - self.cfg.window, 0), last)

    def rotate(self, site: str, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The rotation alone of queries or keys of layer 0."""
        (op,) = (op for op in self.oracle.ops if op.site == site)
        return replay(self.oracle, site, 0, {op.inputs[0]: x, "positions": positions})

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
    n = min(PROMPT, q.oracle.config.context)
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
            q.rotate("attn.q_rope", q.q_TNH, start + np.arange(S - T, S)),
            q.rotate("attn.k_rope", q.k_SKH, start + np.arange(S)),
        ]
        scores.append(q.attend("attn.scores", attn__q_rope=rotated[0], kv__k=rotated[1]))
    size = np.abs(q.q_TNH).sum(-1).max() * np.abs(q.k_SKH).max() * _magnitude(q) ** 2
    return _ratio(scores[0], scores[1], 4 * (S + shift) * U64 * size)


def order_of_cached_positions_is_nothing(q: Question) -> float:
    """Permuting slots, rotated keys and values together, does not change what sees them all."""
    last, order = {"attn__q_rope": q.q_TNH[-1:]}, np.arange(S)
    order[q.visible(T - 1)] = q.rng.permutation(order[q.visible(T - 1)])
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
    means_TKH = np.stack([q.v_SKH[q.visible(t)].mean(axis=0) for t in range(T)])
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
    """RoPE is a rotation of each pair, but for YaRN's magnitude; other elements stay."""
    got = q.rotate("attn.q_rope", q.q_TNH, np.arange(T) + 77)
    turned = np.arange(q.cfg.head_dim) < q.oracle.config.rope_dim
    ref = np.linalg.norm(q.q_TNH * np.where(turned, _magnitude(q), 1), axis=-1)
    return _ratio(ref, np.linalg.norm(got, axis=-1), 4 * q.q_TNH.shape[-1] * U64 * ref)


def _magnitude(q: Question) -> float:
    scaling = q.oracle.config.rope_of(0).scaling
    return 1.0 if scaling is None else scaling.magnitude


def attention_agrees_with_multiprecision(q: Question) -> float:
    """Scores, soft cap, softmax and values, a head of each kv group at each token."""
    ref, got, floor, groups = [], q.attend(), q.floor(), q.cfg.heads // q.cfg.kv_heads
    for t in range(T):
        for kv_head in range(q.cfg.kv_heads):
            head, seen = kv_head * groups + t % groups, q.visible(t)
            keys, values = q.k_SKH[seen, kv_head], q.v_SKH[seen, kv_head]
            scale, cap = q.cfg.score_scale, q.cfg.score_cap
            row_H = multiprecision.attend(q.q_TNH[t, head], keys, values, scale, cap)
            ref.append(_ratio(row_H, got[t, head], floor[t, head]))
    return max(ref)


def norm_agrees_with_multiprecision(q: Question) -> float:
    """The final norm: every model has one."""
    x_TD = q.rng.standard_normal((T, q.oracle.config.dim))
    scale_D = np.asarray(q.oracle.weights.load("final_norm_D"), np.float64)
    ref = [multiprecision.rms_norm(x_D, scale_D, q.cfg.rms_eps) for x_D in x_TD]
    return _agrees(q, "final.norm", -1, {"resid.in": x_TD}, np.stack(ref))


def gate_agrees_with_multiprecision(q: Question) -> float:
    """The activation, its saturated ends included."""
    c = q.oracle.config
    shape = (T, *((c.experts,) if c.experts else ()), c.ffn)
    gate, up = q.rng.standard_normal((2, *shape)) * np.geomspace(0.01, 40, c.ffn)
    pairs = zip(gate.reshape(-1, c.ffn), up.reshape(-1, c.ffn), strict=True)
    ref = [multiprecision.gated(*pair, c.row.gate) for pair in pairs]
    return _agrees(q, "ffn.act", 0, {"ffn.gate": gate, "ffn.up": up}, np.stack(ref).reshape(shape))


def rotation_agrees_with_multiprecision(q: Question) -> float:
    """Angles too, near the end of the context or of the first thousand positions.

    Scaled frequencies are taken as the configuration has them: torch is their second opinion.
    """
    c = q.oracle.config
    rope, interleaved = c.rope_of(0), c.row.rope == "interleaved"
    plain = rope.scaling is None and rope.factors is None
    frequency_R = (
        multiprecision.frequencies(rope.base, rope.dim)
        if plain
        else multiprecision.exact(rope.frequencies())
    )
    positions_T = min(FAR, c.context - T) + np.arange(T)
    (op,) = (op for op in q.oracle.ops if op.site == "attn.q_rope")
    ref = [
        [multiprecision.rotate(x_H, int(at), frequency_R, _magnitude(q), interleaved) for x_H in x]
        for x, at in zip(q.q_TNH, positions_T, strict=True)
    ]
    inputs = {op.inputs[0]: q.q_TNH, "positions": positions_T}
    return _agrees(q, "attn.q_rope", 0, inputs, np.array(ref), angle="float64")


def a_projection_agrees_with_multiprecision(q: Question) -> float:
    """Some rows of attn.q."""
    c = q.oracle.config
    (op,) = (op for op in q.oracle.ops if op.site == "attn.q")
    x_TD = q.rng.standard_normal((T, c.dim))
    weight_ED = np.asarray(q.oracle.weights.load("q_NHD", 0), np.float64).reshape(-1, c.dim)
    rows = q.rng.integers(0, len(weight_ED), 16)
    ref = np.stack([multiprecision.project(x_D, weight_ED[rows]) for x_D in x_TD])
    if op.bias is not None:
        ref += np.asarray(q.oracle.weights.load(op.bias, 0), np.float64).reshape(-1)[rows]
    return _agrees(q, "attn.q", 0, {op.inputs[0]: x_TD}, ref, rows)


def _agrees(q: Question, site: str, layer: int, inputs: dict, ref, rows=None, **declared) -> float:
    """Largest difference of a replay, or of some of its rows, over the floor."""
    got = replay(q.oracle, site, layer, inputs)
    floor = 2 * bound(q.oracle, site, layer, inputs, DOUBLE | declared)
    if rows is not None:
        got, floor = (x.reshape(T, -1)[:, rows] for x in (got, floor))
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


LAYER_LAWS: tuple[Callable[[Question], float], ...] = (
    grouped_heads_equal_replicated_heads,
    scores_depend_on_relative_position,
    order_of_cached_positions_is_nothing,
    attention_weights_sum_to_one,
    equal_keys_share_attention_equally,
    attention_is_linear_in_values,
    unseen_slots_do_not_matter,
    rotation_keeps_length,
    attention_agrees_with_multiprecision,
    norm_agrees_with_multiprecision,
    gate_agrees_with_multiprecision,
    rotation_agrees_with_multiprecision,
    a_projection_agrees_with_multiprecision,
    weights_are_decoded_as_gguf_does,
)
"""The laws of one layer, made-up tensors in; prefill_equals_prefill_then_decode is the model's."""
