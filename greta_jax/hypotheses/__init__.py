"""Named counterfactual versions of ops: what a known mistake would have computed.

A judge that sees a structural error compares what it got with each of these on the same captured
inputs. A hypothesis is only worth naming if its residual reaches the floor and beats the runner-up.
Sources of the mistakes: the GRETA record, rows R, L and G of greta.md section 3.
"""

import numpy as np

from greta_jax.hypotheses import attention, cache, pointwise, projections, rotation, softmax
from greta_jax.hypotheses.question import Hypothesis, Question, Tensors, named
from greta_jax.model import Oracle
from greta_jax.replay import replay

__all__ = ["FALLBACKS", "HYPOTHESES", "SHOWS", "Question", "Tensors", "counterfactuals"]

_NORMED = pointwise.NORMED | projections.NORM_WEIGHTS

HYPOTHESES: dict[str, dict[str, Hypothesis]] = {
    "embed": projections.EMBEDDED,
    "attn.norm": _NORMED,
    "attn.q_rope": rotation.ROTATED,
    "attn.k_rope": rotation.ROTATED,
    "kv.k": cache.CACHED_K,
    "kv.v": cache.CACHED,
    "attn.scores": attention.SCORES,
    "attn.probs": attention.SCORES,
    "attn.out": attention.OUT | softmax.SOFTMAX,
    "resid.mid": pointwise.SUMMED,
    "ffn.norm": _NORMED,
    "ffn.act": pointwise.ACTIVATED,
    "resid.out": pointwise.SUMMED | named(pointwise.residual_of_the_layers_input),
    "final.norm": _NORMED,
    "logits": projections.LOGITS,
    **dict.fromkeys(
        ("attn.q", "attn.k", "attn.v", "attn.proj", "ffn.gate", "ffn.up", "ffn.down"),
        projections.PROJECTED,
    ),
}


def scaled_by_a_constant(q: Question):
    """L5: everything times one number, read from the largest element of each head."""
    if q.got is None or not np.isfinite(q.got).all():
        return None
    right = q.right()
    heads = right.ndim == 3
    factor = np.ones(right.shape[1] if heads else 1)
    for head in range(len(factor)):
        ref, got = (x[:, head] if heads else x for x in (right, np.asarray(q.got, np.float64)))
        # The factor that the most accurate elements agree on.
        at = np.unravel_index(np.argmax(np.abs(ref)), ref.shape)
        if ref[at]:
            factor[head] = got[at] / ref[at]
    return q.scaled(factor[:, None] if heads else factor)


FALLBACKS: dict[str, Hypothesis] = named(scaled_by_a_constant)
"""Asked where no other mistake holds: they fit more, and say less."""

SHOWS = {
    **{k: v for x in (projections, rotation, attention, softmax, cache) for k, v in x.SHOWS.items()}
}
"""The input on which a mistake differs from others, where captured inputs may not do."""


def counterfactuals(
    oracle: Oracle,
    site: str,
    layer: int,
    inputs: Tensors,
    others=None,
    evaluate=replay,
    got: np.ndarray | None = None,
    table: dict[str, Hypothesis] | None = None,
    batched: int | None = None,
) -> Tensors:
    """Every hypothesis that applies to one captured op, by name, in the shape of `replay`.

    `got`, what the engine computed, lets a mistake read its one parameter from it. `table`: other
    hypotheses than those of the site. `batched`: tokens that came in passes of several.
    Elements of which a hypothesis says nothing are NaN, those that it leaves not finite infinite.
    Raises SiteError as `replay`.
    """
    question = Question(oracle, site, layer, inputs, others or {}, evaluate, got, batched)
    asked = HYPOTHESES.get(site, {}) if table is None else table
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        # An engine's tensors may hold what they like; NaN is then what a mistake says of them.
        answers = {name: ask(question) for name, ask in asked.items()}
    return {name: answer for name, answer in answers.items() if answer is not None}
