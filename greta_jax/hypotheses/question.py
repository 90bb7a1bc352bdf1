"""One captured op, and how a counterfactual asks it again with something changed."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from greta_jax.graph import LAYER_OP
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from greta_jax.replay import replay
from greta_jax.taps import MODEL_LAYER

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Question:
    """One op as captured: `inputs` are INPUTS[site]; `others` are more captured tensors, if any,
    by (layer, site), for the mistakes that mix layers; `got` is what the engine computed, from
    which a mistake may read its one parameter (a base, an offset), in the shape of `replay`."""

    oracle: Oracle
    site: str
    layer: int
    inputs: Tensors
    others: dict[tuple[int, str], np.ndarray]
    evaluate: Callable = replay
    """`replay`, or another function of its arguments whose rows belong to the same elements, such
    as a bound of what rounding may do: what a mistake permutes, it permutes of that too."""
    got: np.ndarray | None = None
    batched: int | None = None
    """Tokens that came in passes of several; None: all. The others came one by one."""

    def in_batch(self, tokens: int) -> np.ndarray:
        """Which of the op's tokens came in a pass of several."""
        return np.arange(tokens) < (tokens if self.batched is None else self.batched)

    @property
    def bounding(self) -> bool:
        """Whether the rounding of a mistake is asked for, and not its result."""
        return self.evaluate is not replay

    def ask(self, **changes) -> np.ndarray:
        """The op on changed inputs (dots in names written as underscores twice)."""
        changed = {name.replace("__", "."): value for name, value in changes.items()}
        return self.evaluate(self.oracle, self.site, self.layer, self.inputs | changed)

    def right(self) -> np.ndarray:
        """The op as it should be, in fp64, whatever is asked for."""
        return np.asarray(replay(self.oracle, self.site, self.layer, self.inputs))

    def scaled(self, factor) -> np.ndarray:
        """The op times a factor that is as exact as the op's own sums: twice its rounding."""
        factor = np.abs(2 * factor) if self.bounding else factor
        return np.asarray(self.ask()) * factor

    def under(self, policy: Policy) -> np.ndarray:
        """The op on the same inputs in another precision."""
        return self.evaluate(self.oracle.with_policy(policy), self.site, self.layer, self.inputs)

    def configured(self, **changes) -> np.ndarray:
        """The op of a model whose configuration says something else."""
        config = replace(self.oracle.config, **changes)
        oracle = Oracle(self.oracle.file, config, self.oracle.weights, self.oracle.policy)
        return self.evaluate(oracle, self.site, self.layer, self.inputs)

    def weight_name(self) -> str:
        """The weight of this op."""
        own = {"final.norm": "final_norm_D", "logits": "unembed_VD", "embed": "embed_VD"}
        return own.get(self.site) or LAYER_OP[self.site].weights[0]

    def with_weight(self, value, magnitude=None) -> np.ndarray:
        """The op with other numbers in its weight, whose roundings are relative to `magnitude`."""
        name = self.weight_name()
        layer = MODEL_LAYER if self.site in ("final.norm", "logits", "embed") else self.layer
        shape = self.oracle.weights.shape(name)
        value = np.asarray(value, np.float64).reshape(shape)
        size = np.abs(value) if magnitude is None else np.asarray(magnitude).reshape(shape)
        weights = _Altered(self.oracle.weights, (name, layer), value, size)
        oracle = Oracle(self.oracle.file, self.oracle.config, weights, self.oracle.policy)
        return self.evaluate(oracle, self.site, self.layer, self.inputs)

    def with_weight_of(self, name: str, layer: int) -> np.ndarray | None:
        """The op with another tensor of the file, None if that has not as many numbers."""
        weights = self.oracle.weights
        if name not in weights.table:
            return None
        own = self.weight_name()
        if np.prod(weights.shape(name)) != np.prod(weights.shape(own)):
            return None
        return self.with_weight(weights.load(name, layer), weights.magnitude(name, layer)[0])


Hypothesis = Callable[[Question], np.ndarray | None]
"""The counterfactual tensor, or None where the mistake cannot show or its inputs are not there."""


class _Altered:
    """The weights of a model with the numbers of one tensor exchanged."""

    def __init__(self, weights, place: tuple[str, int], value: np.ndarray, size: np.ndarray):
        self._weights, self._place, self._value, self._size = weights, place, value, size

    def __getattr__(self, attribute: str):
        return getattr(self._weights, attribute)

    def _is(self, name: str, layer: int) -> bool:
        return (name, layer) == self._place

    def chunks(self, name: str, layer: int = MODEL_LAYER, **how):
        if not self._is(name, layer):
            yield from self._weights.chunks(name, layer, **how)
        elif self._value.ndim == 1:
            yield self._value
        else:
            yield self._value.reshape(-1, self._columns())

    def _columns(self) -> int:
        tensor = self._weights.tensor_name(*self._place)
        return self._weights.file.info(tensor).shape[-1]

    def load(self, name: str, layer: int = MODEL_LAYER):
        return self._value if self._is(name, layer) else self._weights.load(name, layer)

    def magnitude(self, name: str, layer: int = MODEL_LAYER):
        size, roundings = self._weights.magnitude(name, layer)
        return (self._size if self._is(name, layer) else size), roundings

    def embed_rows(self, token_ids: np.ndarray):
        return self._value[np.asarray(token_ids)]

    def embed_magnitudes(self, token_ids: np.ndarray):
        _, roundings = self._weights.embed_magnitudes(token_ids)
        return self._size[np.asarray(token_ids)], roundings

    def unembed_magnitudes(self):
        _, roundings = next(iter(self._weights.unembed_magnitudes()))
        yield self._size, roundings


def named(*hypotheses: Hypothesis) -> dict[str, Hypothesis]:
    """By the names of their functions."""
    return {hypothesis.__name__: hypothesis for hypothesis in hypotheses}


def early(x: np.ndarray, places: int) -> np.ndarray:
    """What lies `places` before along the first axis; where nothing does, the first."""
    return np.concatenate([np.repeat(x[:1], places, axis=0), x[:-places]]) if places else x
