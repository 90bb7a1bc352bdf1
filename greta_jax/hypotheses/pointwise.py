"""Mistakes of norms, residual sums and the activation."""

import math

import numpy as np

from greta_jax.graph import INPUTS
from greta_jax.hypotheses.question import Hypothesis, Question, named
from greta_jax.taps import MODEL_LAYER


def _double(q: Question, name: str) -> np.ndarray:
    return np.asarray(q.inputs[name], np.float64)


def _replaced(q: Question, name: str, value) -> np.ndarray:
    return q.evaluate(q.oracle, q.site, q.layer, q.inputs | {name: value})


# Norms.


def _root(q: Question, mean_T1: np.ndarray) -> np.ndarray:
    return np.sqrt(mean_T1 + q.oracle.config.rms_eps)


def _mean_square(q: Question) -> np.ndarray:
    return np.mean(np.square(_double(q, INPUTS[q.site][0])), axis=-1, keepdims=True)


def scale_weight_missing(q: Question):
    """The norm without its weight."""
    return q.with_weight(np.ones(q.oracle.weights.shape(q.weight_name())))


def one_added_to_the_weight(q: Question):
    """Gemma's norm: the weight is stored less one."""
    scale = np.asarray(q.oracle.weights.load(q.weight_name(), _layer(q)), np.float64)
    return q.with_weight(1 + scale)


def _layer(q: Question) -> int:
    return MODEL_LAYER if q.site in ("final.norm", "logits", "embed") else q.layer


def sum_in_place_of_mean(q: Question):
    """The norm divides by the root of the sum of squares, epsilon added to that."""
    mean_T1 = _mean_square(q)
    D = np.shape(q.inputs[INPUTS[q.site][0]])[-1]
    return q.scaled(_root(q, mean_T1) / _root(q, D * mean_T1))


def mean_in_place_of_mean_square(q: Question):
    """The norm divides by the root of the mean magnitude."""
    x_TD = _double(q, INPUTS[q.site][0])
    mean_T1 = np.abs(x_TD).mean(axis=-1, keepdims=True)
    return q.scaled(_root(q, _mean_square(q)) / _root(q, mean_T1))


def mean_subtracted(q: Question):
    """LayerNorm where the model has RMSNorm."""
    base = INPUTS[q.site][0]
    x_TD = _double(q, base)
    return _replaced(q, base, x_TD - x_TD.mean(axis=-1, keepdims=True))


def epsilon_missing(q: Question):
    """Nothing is added to the mean square."""
    mean_T1 = _mean_square(q)
    return q.scaled(_root(q, mean_T1) / np.sqrt(mean_T1)) if mean_T1.all() else None


def epsilon_outside_the_root(q: Question):
    """Epsilon is added to the root, not under it."""
    mean_T1 = _mean_square(q)
    return q.scaled(_root(q, mean_T1) / (np.sqrt(mean_T1) + q.oracle.config.rms_eps))


def epsilon_of_another_model(q: Question):
    """Another epsilon: read from the token with the least norm, and rounded to the one digit that a
    configuration has."""
    if q.got is None or not np.isfinite(q.got).all():
        return None
    mean_T1 = _mean_square(q)
    at = int(mean_T1.argmin())
    right_D, got_D = q.right()[at], q.got[at].astype(np.float64)
    ratio = float(got_D @ right_D / max(right_D @ right_D, np.finfo(float).tiny))
    if not ratio > 0:
        return None
    least = float(mean_T1[at, 0])
    epsilon = (least + q.oracle.config.rms_eps) / ratio**2 - least
    if not epsilon > 0:
        return None
    epsilon = round(epsilon, -math.floor(math.log10(epsilon)))
    if math.isclose(epsilon, q.oracle.config.rms_eps, rel_tol=0.5):
        return None
    return q.scaled(_root(q, mean_T1) / np.sqrt(mean_T1 + epsilon))


NORMED = named(
    scale_weight_missing,
    one_added_to_the_weight,
    sum_in_place_of_mean,
    mean_in_place_of_mean_square,
    mean_subtracted,
    epsilon_missing,
    epsilon_outside_the_root,
    epsilon_of_another_model,
)


# Residual sums.


def residual_missing(q: Question):
    """The branch alone, without what it is added to."""
    base = INPUTS[q.site][0]
    return _replaced(q, base, 0 * _double(q, base))


def residual_doubled(q: Question):
    """What the branch is added to counts twice."""
    base = INPUTS[q.site][0]
    return _replaced(q, base, 2 * _double(q, base))


def branch_missing(q: Question):
    """What the branch is added to alone."""
    branch = INPUTS[q.site][1]
    return _replaced(q, branch, 0 * _double(q, branch))


def branch_doubled(q: Question):
    """The branch counts twice. Added to the sum once more, that rounds once more."""
    branch = INPUTS[q.site][1]
    doubled = _replaced(q, branch, 2 * _double(q, branch))
    return doubled + q.ask() if q.bounding else doubled


def residual_of_the_layers_input(q: Question):
    """The second sum of a layer is taken from its input, past attention."""
    before = (q.layer - 1, "resid.out") if q.layer else (MODEL_LAYER, "embed")
    tensor = q.others.get(before)
    return None if tensor is None else _replaced(q, INPUTS[q.site][0], tensor)


SUMMED = named(residual_missing, residual_doubled, branch_missing, branch_doubled)


# The activation.


def gate_and_up_exchanged(q: Question):
    """silu taken of up."""
    return q.ask(ffn__gate=q.inputs["ffn.up"], ffn__up=q.inputs["ffn.gate"])


def up_missing(q: Question):
    """silu(gate) without its factor."""
    return q.ask(ffn__up=np.ones_like(_double(q, "ffn.up")))


def _activated(name: str, meaning: str, factor) -> Hypothesis:
    """gate * up * factor(gate), where silu's factor is the logistic function."""

    def hypothesis(q: Question):
        gate_TF = _double(q, "ffn.gate")
        with np.errstate(over="ignore"):
            logistic = 1 / (1 + np.exp(-gate_TF))
        return q.scaled(factor(gate_TF) / np.maximum(logistic, np.finfo(float).tiny))

    hypothesis.__name__, hypothesis.__doc__ = name, meaning
    return hypothesis


def _tanh_gelu(x):
    return 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _normal_below(x):
    return 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


ACTIVATED = named(
    gate_and_up_exchanged,
    up_missing,
    _activated("gate_not_activated", "gate * up, without silu.", np.ones_like),
    _activated("gelu_by_tanh", "gelu in its tanh form for silu.", _tanh_gelu),
    _activated("gelu_by_erf", "gelu for silu.", _normal_below),
    _activated("relu_in_place_of_silu", "relu for silu.", lambda x: np.where(x > 0, 1.0, 0.0)),
)
