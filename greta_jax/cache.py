"""The KV cache: one immutable slab of keys and of values a layer."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

BUCKET = 64
"""Slabs grow by this many slots, so that a sequence compiles once a bucket and not once a token."""


@dataclass(frozen=True)
class KVCache:
    """Keys (rotated) and values of the first `length` positions, in slabs of `capacity` slots.

    Appending makes a new cache and leaves the old one valid. Slots from `length` on hold
    nothing that may be read.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    length: int

    @classmethod
    def empty(cls, layers: int, kv_heads: int, head_dim: int, dtype: str) -> "KVCache":
        """A cache of no positions."""
        slab_SKH = jnp.zeros((0, kv_heads, head_dim), dtype)
        return cls((slab_SKH,) * layers, (slab_SKH,) * layers, 0)

    @property
    def capacity(self) -> int:
        """Slots in each slab."""
        return self.k[0].shape[0]

    def live(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values SKH of the live positions of one layer."""
        return np.asarray(self.k[layer])[: self.length], np.asarray(self.v[layer])[: self.length]

    def grown_to(self, slots: int) -> "KVCache":
        """The same cache with room for at least `slots` positions."""
        if slots <= self.capacity:
            return self
        extra = -(-slots // BUCKET) * BUCKET - self.capacity
        return replace(self, k=_padded(self.k, extra), v=_padded(self.v, extra))


def _padded(slabs, extra: int) -> tuple[jax.Array, ...]:
    """Layers that share a slab (an empty cache's do) go on sharing one."""
    pad = jnp.zeros((extra, *slabs[0].shape[1:]), slabs[0].dtype)
    distinct = {id(slab): slab for slab in slabs}
    padded = {key: jnp.concatenate([slab, pad]) for key, slab in distinct.items()}
    return tuple(padded[id(slab)] for slab in slabs)


def pad_slab(slab_SKH: np.ndarray) -> np.ndarray:
    """A captured live slab, zero-padded to a whole number of buckets."""
    extra = -slab_SKH.shape[0] % BUCKET
    return np.pad(np.asarray(slab_SKH), ((0, extra), (0, 0), (0, 0)))
