"""One forward over several devices, of one host or of many: heads, ffn and matrix rows are split.

Every matrix is split by its rows: q, k and v by heads, gate and up by ffn, the others by what they
return. What a matrix or a norm reads is gathered before, so each sum of products runs whole on one
device and no partial sum crosses a link; attention, its cache and the activation stay where their
heads are. The residual stream is on every device. XLA moves the rest by itself: the ops are the
same compiled functions as on one device.

Several hosts: each calls `jax.distributed.initialize(coordinator, processes, index)` before the
first array, opens the same file and runs the same program; every host gets the gathered result.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from greta_jax.config import LlamaConfig
from greta_jax.errors import ConfigError

AXIS = "heads_and_ffn"

SPLIT_SITES = (
    *("attn.q_norm", "attn.k_norm", "attn.q_rope", "attn.k_rope", "kv.k", "kv.v"),
    *("attn.scores", "attn.probs", "attn.out", "ffn.act"),
)
"""Ops that take their inputs as they lie; every other one has them gathered first."""


class OneDevice:
    """Everything where JAX puts it."""

    devices = 1

    def rows(self, raw: np.ndarray):
        """A matrix's stored rows, on the devices that multiply with them."""
        return raw

    def everywhere(self, x):
        """The whole of it on each device."""
        return jax.numpy.asarray(x)

    def inputs(self, site: str, tensors: Sequence) -> Sequence:
        """What an op reads, laid out as it needs."""
        del site
        return tensors

    def to_host(self, x) -> np.ndarray:
        """All of it, on this host."""
        return np.asarray(x)


ONE_DEVICE = OneDevice()


class Sharded(OneDevice):
    """Over the devices of all processes, or some of them.

    Raises ConfigError where they do not divide the model's kv heads and ffn.
    """

    def __init__(self, config: LlamaConfig, devices: Sequence[jax.Device] | None = None):
        chosen = list(jax.devices() if devices is None else devices)
        self.devices = len(chosen)
        for name, size in (("kv heads", config.kv_heads), ("ffn", config.ffn)):
            if size % self.devices:
                raise ConfigError(
                    f"{self.devices} devices do not divide the model's {name}, {size}",
                    remedy=f"shard over a divisor of {config.kv_heads} devices",
                )
        self.mesh = Mesh(np.array(chosen), (AXIS,))

    def rows(self, raw: np.ndarray):
        """Split if the devices divide them; each process reads only its own."""
        split = PartitionSpec(None if len(raw) % self.devices else AXIS)
        where = NamedSharding(self.mesh, split)
        return jax.make_array_from_callback(raw.shape, where, lambda index: raw[index])

    def everywhere(self, x):
        """Gathered, from a device array that is split or from a host's."""
        where = NamedSharding(self.mesh, PartitionSpec())
        if isinstance(x, jax.Array) and x.sharding.device_set == where.device_set:
            return jax.device_put(x, where)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, where, lambda index: host[index])

    def inputs(self, site: str, tensors: Sequence) -> Sequence:
        """Gathered, unless the op works on heads or ffn elements apart."""
        return tensors if site in SPLIT_SITES else [self.everywhere(x) for x in tensors]

    def to_host(self, x) -> np.ndarray:
        """Gathered, also from other processes."""
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return np.asarray(x)
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
