"""Mistakes of RoPE."""

import math

import numpy as np

from greta_jax.graph import LAYER_OP
from greta_jax.hypotheses.question import Hypothesis, Question, named

CHUNKS = (16, 32, 64)
"""Tokens of a pass in which positions may be counted anew."""


def _source(q: Question) -> tuple[str, np.ndarray]:
    name = LAYER_OP[q.site].inputs[0]
    return name, np.asarray(q.inputs[name], np.float64)


def rotated_in_halves(q: Question):
    """L6: pairs (i, i + H/2) are rotated where GGUF's rows make them (2i, 2i + 1)."""
    name, x = _source(q)
    H = x.shape[-1]
    paired = np.stack([x[..., : H // 2], x[..., H // 2 :]], axis=-1).reshape(x.shape)
    answer = q.evaluate(q.oracle, q.site, q.layer, q.inputs | {name: paired})
    return np.concatenate([answer[..., 0::2], answer[..., 1::2]], axis=-1)


def _positions(name: str, meaning: str, change) -> Hypothesis:
    def hypothesis(q: Question):
        positions = np.asarray(q.inputs["positions"])
        changed = change(positions)
        return None if np.array_equal(changed, positions) else q.ask(positions=changed)

    hypothesis.__name__, hypothesis.__doc__ = name, meaning
    return hypothesis


def position_off_by_a_constant(q: Question):
    """Positions that began elsewhere, not reset after the prompt before for one: the offset is read
    from the first token, and holds for all."""
    if q.got is None or not np.isfinite(q.got).all():
        return None
    _, x = _source(q)
    first = int(np.asarray(q.inputs["positions"])[0])
    wanted = np.arange(q.oracle.config.context)
    cos_PR, sin_PR = (table[:, None] for table in q.oracle.config.rotation(wanted, q.layer))
    even, odd = x[0][None, :, 0::2], x[0][None, :, 1::2]
    turned = np.stack([even * cos_PR - odd * sin_PR, even * sin_PR + odd * cos_PR], axis=-1)
    distance_P = np.abs(turned.reshape(len(wanted), *x[0].shape) - q.got[0]).max(axis=(1, 2))
    offset = int(distance_P.argmin()) - first
    return None if abs(offset) <= 1 else q.ask(positions=np.asarray(q.inputs["positions"]) + offset)


def base_of_another_model(q: Question):
    """Another base of the angles: read from the first pair that turns slower than once a token, and
    rounded to the two digits that a configuration has."""
    positions = np.asarray(q.inputs["positions"])
    if q.got is None or 1 not in positions or not np.isfinite(q.got).all():
        return None
    at = int(np.flatnonzero(positions == 1)[0])
    _, x = _source(q)
    even, odd = x[at, :, 2::2], x[at, :, 3::2]
    new_even, new_odd = q.got[at, :, 2::2], q.got[at, :, 3::2]
    sine, cosine = (
        (even * new_odd - odd * new_even).sum(0),
        (even * new_even + odd * new_odd).sum(0),
    )
    angle_R = np.arctan2(sine, cosine)
    half, H = len(angle_R) // 2, x.shape[-1]
    if not angle_R[half] > 0:
        return None
    base = angle_R[half] ** (-H / (2 * (half + 1)))
    digits = 1 - math.floor(math.log10(base))
    base = float(round(base, digits))
    return None if base == q.oracle.config.rope_base else q.configured(rope_base=base)


def rotated_in_part(q: Question):
    """Only the first half of the head is rotated."""
    _, x = _source(q)
    answer = np.array(q.ask())
    half = x.shape[-1] // 2
    answer[..., half:] = 0 if q.bounding else x[..., half:]
    return answer


def frequencies_reversed(q: Question):
    """The slowest pair is turned fastest."""
    name, x = _source(q)
    pairs = x.reshape(*x.shape[:-1], -1, 2)[..., ::-1, :].reshape(x.shape)
    answer = q.evaluate(q.oracle, q.site, q.layer, q.inputs | {name: pairs})
    return answer.reshape(*x.shape[:-1], -1, 2)[..., ::-1, :].reshape(x.shape)


def angles_per_element(q: Question):
    """Frequencies base^(-i/H) where pair i has base^(-2i/H)."""
    return q.configured(rope_base=q.oracle.config.rope_base**0.5)


def _restarting(chunk: int) -> Hypothesis:
    def hypothesis(q: Question):
        positions = np.asarray(q.inputs["positions"])
        starts = np.where(q.in_batch(len(positions)), positions // chunk * chunk, 0)
        return q.ask(positions=positions - starts) if starts.any() else None

    hypothesis.__name__ = f"positions_restart_every_{chunk}"
    hypothesis.__doc__ = f"Each pass of {chunk} tokens counts from 0."
    return hypothesis


ROTATED = named(
    rotated_in_halves,
    _positions("not_rotated", "The rotation is left out.", lambda p: 0 * p),
    _positions("position_plus_one", "G2: the rotation of position + 1.", lambda p: p + 1),
    _positions("position_minus_one", "G2: the rotation of position - 1.", lambda p: p - 1),
    _positions("rotated_twice", "The rotation is applied to what is rotated.", lambda p: 2 * p),
    _positions("rotated_backwards", "The sine's sign is wrong.", lambda p: -p),
    *map(_restarting, CHUNKS),
    position_off_by_a_constant,
    base_of_another_model,
    rotated_in_part,
    frequencies_reversed,
    angles_per_element,
)
SHOWS = {
    "position_plus_one": "at two positions or more",
    "position_minus_one": "at two positions or more",
    "not_rotated": "at positions above 0",
    "rotated_in_halves": "at positions above 0",
    "rotated_twice": "at positions above 0",
    "rotated_backwards": "at positions above 0",
    "rotated_in_part": "at positions above 0",
    "frequencies_reversed": "at positions above 0",
    "angles_per_element": "at positions above 0",
    "base_of_another_model": "at positions above 0",
    "position_off_by_a_constant": "at two positions or more",
    **{f"positions_restart_every_{chunk}": f"beyond {chunk} tokens" for chunk in CHUNKS},
}
