"""Weights that several oracles read in step: each chunk is decoded once and is there for all."""

from collections.abc import Iterator

import jax

from greta_jax.taps import MODEL_LAYER
from greta_jax.weights import ModelWeights


class DecodedOnce:
    """The widest weights of a file. Only the chunk that its readers are at is in memory.

    Casting it gives the bits of decoding to a narrower dtype: the values were rounded to fp32.
    """

    def __init__(self, widest: ModelWeights):
        self.widest = widest
        self._vectors: dict[tuple[str, int], jax.Array] = {}
        self._now: tuple[str, int, int] | None = None
        self._coming: Iterator[jax.Array] = iter(())
        self._made: dict[str, jax.Array | None] = {}

    def is_vector(self, name: str, layer: int) -> bool:
        return len(self.widest.file.info(self.widest.tensor_name(name, layer)).shape) == 1

    def vector(self, name: str, layer: int) -> jax.Array:
        """A norm's or a bias's weights, kept."""
        if (name, layer) not in self._vectors:
            (self._vectors[name, layer],) = self.widest.chunks(name, layer)
        return self._vectors[name, layer]

    def chunk(self, name: str, layer: int, index: int, store: str) -> jax.Array | None:
        """That chunk of a matrix, None after the last. The first reader to ask has it decoded."""
        if self._now != (name, layer, index):
            if index == 0:
                self._coming = self.widest.chunks(name, layer)
            self._now = (name, layer, index)
            self._made = {self.widest.store: next(self._coming, None)}
        found = self._made[self.widest.store]
        if found is None:
            return None
        if store not in self._made:
            self._made[store] = found.astype(store)
        return self._made[store]


class SharedWeights:
    """The weights of one oracle, its chunks taken from those that all oracles share."""

    def __init__(self, own: ModelWeights, shared: DecodedOnce):
        self._own, self._shared = own, shared

    def __getattr__(self, name: str):
        return getattr(self._own, name)

    def check_products(self, name: str, layer: int, products: list) -> None:
        """Nothing is left to search: the shared chunks were, when they were decoded."""

    def settle(self) -> None:
        self._shared.widest.settle()

    def chunks(self, name: str, layer: int = MODEL_LAYER, checked: bool = True) -> Iterator:
        if self._shared.is_vector(name, layer):
            yield self._shared.vector(name, layer).astype(self._own.store)
            return
        index = 0
        while (chunk := self._shared.chunk(name, layer, index, self._own.store)) is not None:
            yield chunk
            index += 1
