"""Gradients of one number made of the logits with respect to the tensor at every site.

Backwards through the table of ops, a layer at a time: the residual stream is kept, the rest of a
layer is computed again. What an error at a site does to that number is, to first order, the sum of
its products with the gradient there.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from greta_jax.graph import FINAL_NORM, LOGITS, Op, computed
from greta_jax.model import Oracle, padding
from greta_jax.taps import MODEL_LAYER, Taps

CONSTANTS = ("positions", "rotation")
"""Inputs of ops that no error is carried by."""


@dataclass(frozen=True)
class LayerGradients:
    """Of one layer, or of MODEL_LAYER: gradients by site, and the oracle's own tensors there.

    of: which of the cotangents they are with respect to. Arrays hold the tokens given, T first; of
    `kv.k` and `kv.v`, the rows those tokens appended. `read_from(site, first)` is the gradient at a
    slab that only tokens from `first` on read.
    """

    of: int
    layer: int
    by_site: dict[str, np.ndarray]
    tensors: dict[str, np.ndarray]
    read_from: Callable[[str, int], np.ndarray] | None = None


def gradients(
    oracle: Oracle, token_ids, cotangents: Iterable[np.ndarray]
) -> Iterator[LayerGradients]:
    """From the logits back to the embedding, of the sum of each cotangent TV * logits.

    All cotangents of a layer in turn, then the layer before. MODEL_LAYER comes first with `logits`
    and `final.norm`, and last with `embed`. Raises as `Oracle.prefill`.
    """
    ids_T = np.asarray(token_ids, np.int64).reshape(-1)
    run = oracle.begin(ids_T, oracle.empty_cache(), Taps())
    stream = [run.x_TD]
    for layer in range(oracle.config.layers):
        oracle.run_layer(run, layer)
        stream.append(run.x_TD)
        run.slabs["kv.k"].pop(layer), run.slabs["kv.v"].pop(layer)
    live, flowing = _Live(len(ids_T)), []
    tensors = {"resid.in": stream.pop()}
    tensors["final.norm"] = oracle.apply(FINAL_NORM, MODEL_LAYER, tensors)
    for i, cotangent_TV in enumerate(cotangents):
        padded = np.pad(cotangent_TV, ((0, padding(len(ids_T))), (0, 0)))
        at = {"logits": jnp.asarray(padded, oracle.policy.compute)}
        for op in (LOGITS, FINAL_NORM):
            _back(oracle, op, MODEL_LAYER, tensors, at)
        flowing.append(at.pop("resid.in"))
        yield LayerGradients(i, MODEL_LAYER, live.of(at), live.of(tensors))
    for layer in reversed(range(oracle.config.layers)):
        tensors = _forward(oracle, run.sources, layer, stream.pop())
        own = live.of(tensors)
        for i, after in enumerate(flowing):
            at = {"resid.out": after}
            for op in reversed(oracle.ops):
                _back(oracle, op, layer, tensors, at)
            flowing[i] = at.pop("resid.in")
            read_from = partial(_read_from, oracle, live, layer, tensors, at)
            yield LayerGradients(i, layer, live.of(at), own, read_from)
    for i, first in enumerate(flowing):
        yield LayerGradients(i, MODEL_LAYER, live.of({"embed": first}), {})


@dataclass(frozen=True)
class _Live:
    """Drops the rows and slots of padding, and what is no tensor of a site."""

    tokens: int

    def of(self, tensors: dict) -> dict[str, np.ndarray]:
        found = {n: np.asarray(v)[: self.tokens] for n, v in tensors.items() if n not in CONSTANTS}
        for site in ("attn.scores", "attn.probs"):
            if site in found:
                found[site] = found[site][..., : self.tokens]
        return found


def _forward(oracle: Oracle, sources: dict, layer: int, x_TD) -> dict:
    """Every tensor of a layer; a slab is the rows of all tokens, padding included."""
    tensors = {**sources, "resid.in": x_TD}
    tensors["rotation"] = sources["rotation"][oracle.config.rope_of(layer)]
    for op in oracle.ops:
        tensors[op.site] = oracle.apply(op, layer, tensors)
    return tensors


def _back(oracle: Oracle, op: Op, layer: int, tensors: dict, at: dict) -> None:
    """Adds to `at` what the gradient at `op.site` makes of the gradients at its inputs."""
    for name, value in _pulled(oracle, op, layer, tensors, at[op.site]).items():
        at[name] = at[name] + value if name in at else value


def _read_from(oracle: Oracle, live: _Live, layer: int, tensors, at, site: str, first: int):
    (op,) = (op for op in oracle.ops if site in op.inputs)
    here = at[op.site].at[:first].set(0)
    return live.of(_pulled(oracle, op, layer, tensors, here))[site]


def _pulled(oracle: Oracle, op: Op, layer: int, tensors: dict, cotangent) -> dict:
    """Gradients at the inputs of an op whose result has the gradient `cotangent`, by name."""
    names = [name for name in op.inputs if name not in CONSTANTS]
    values = [tensors[name] for name in names]
    rest = []
    for name in op.inputs[len(names) :]:
        value = tensors[name]
        rest += value if isinstance(value, tuple) else (value,)
    cfg, how = oracle.config.layer(layer), oracle.policy.at(op.site, layer)
    pull = partial(_pull, op.function, cfg, how, tuple(values), tuple(rest))
    if op.output:
        found = None
        whole_TE = cotangent.reshape(len(values[0]), -1)
        start, columns = 0, int(np.prod(values[0].shape[1:]))
        for w_EX in oracle.weights.chunks(op.weights[0], layer):
            rows = w_EX.size // columns
            part = pull((w_EX,), whole_TE[:, start : start + rows])
            found = part if found is None else [a + b for a, b in zip(found, part, strict=True)]
            start += rows
    else:
        weights = [w for name in op.weights for w in oracle.weights.chunks(name, layer)]
        found = pull(tuple(weights), cotangent)
    return dict(zip(names, found, strict=True))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _pull(function, cfg, how, values, rest, weights, cotangent):
    """Gradients at `values` of an op whose result has the gradient `cotangent`."""
    _, back = jax.vjp(lambda *xs: computed(function, cfg, how, (*xs, *rest), weights), *values)
    return back(cotangent)
