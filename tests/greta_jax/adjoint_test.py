"""Gradients at every site against differences of forwards in which that site was pushed."""

import jax.numpy as jnp
import numpy as np
import pytest

from greta_jax.adjoint import gradients
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from greta_jax.taps import LAYER_SITES, SITES

STEP = 1e-5


@pytest.fixture(scope="module")
def oracle(quantised_path):
    return Oracle.open(quantised_path, Policy.fp64())


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(8).integers(0, 131, 21)


@pytest.fixture(scope="module")
def cotangent_TV(oracle, ids):
    """Of two tokens, so that later ones must not leak into earlier ones."""
    whole = np.zeros((len(ids), oracle.config.vocab))
    whole[18] = np.random.default_rng(4).standard_normal(oracle.config.vocab)
    whole[11, 7] = 1.0
    return whole


@pytest.fixture(scope="module")
def found(oracle, ids, cotangent_TV):
    parts = list(gradients(oracle, ids, [cotangent_TV]))
    return {(p.layer, site): g for p in parts for site, g in p.by_site.items()}


def test_several_cotangents_have_the_gradients_of_each_alone(oracle, ids, cotangent_TV, found):
    for part in gradients(oracle, ids, [np.roll(cotangent_TV, 1, axis=1), cotangent_TV]):
        for site, gradient in part.by_site.items():
            assert np.array_equal(gradient, found[part.layer, site]) == (part.of == 1), site


class Pushed(Oracle):
    """The oracle with one site's tensor moved by `by`."""

    layer, of, by = 0, "", None

    def apply(self, op, layer, tensors):
        value = super().apply(op, layer, tensors)
        return self._moved(value) if (layer, op.site) == (self.layer, self.of) else value

    def embed(self, ids_T):
        return self._moved(super().embed(ids_T)) if self.of == "embed" else super().embed(ids_T)

    def _moved(self, value):
        room = [(0, full - own) for full, own in zip(value.shape, self.by.shape, strict=True)]
        return value + jnp.asarray(np.pad(self.by, room))


def difference(oracle, ids, cotangent_TV, layer, site, direction):
    ends = []
    for sign in (1, -1):
        pushed = Pushed(oracle.file, oracle.config, oracle.weights, oracle.policy)
        pushed.layer, pushed.of, pushed.by = layer, site, sign * STEP * direction
        ends.append(float((pushed.prefill(ids).logits_TV * cotangent_TV).sum()))
    return (ends[0] - ends[1]) / (2 * STEP)


@pytest.mark.parametrize("site", SITES)
def test_a_gradient_is_what_a_small_push_does(site, oracle, ids, cotangent_TV, found):
    for layer in range(2) if site in LAYER_SITES else (-1,):
        gradient = found[layer, site]
        direction = np.random.default_rng(5).standard_normal(gradient.shape)
        if site == "attn.scores":
            direction *= np.tri(len(ids))[:, None]
        expected = difference(oracle, ids, cotangent_TV, layer, site, direction)
        scale = np.sqrt((gradient**2).sum() * (direction**2).sum())
        assert abs(float((gradient * direction).sum()) - expected) <= STEP * scale, (layer, site)


def test_an_earlier_token_has_a_say_through_the_cache_alone_and_a_later_one_none(found):
    for (layer, site), gradient in found.items():
        assert not gradient[19:].any(), (layer, site)
    assert found[1, "kv.k"][:11].any() and found[1, "kv.v"][:11].any()
    assert not found[1, "resid.out"][:11].any() and found[0, "resid.out"][:11].any()
