"""What can be observed of a step, and what a step returns."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from hip_engine.device import LaunchRecord
from hip_engine.errors import UnknownSite
from hip_engine.routes import Route

NO_LAYER = -1
# In dataflow order. Attention keeps its scores and probabilities in registers: they are no sites.
LAYER_SITES = (
    *("attn.norm", "attn.q", "attn.k", "attn.v", "attn.q_rope", "attn.k_rope", "kv.k", "kv.v"),
    *("attn.out", "attn.proj", "resid.mid", "ffn.norm", "ffn.gate", "ffn.up", "ffn.act"),
    *("ffn.down", "resid.out"),
)
SITES = ("embed", *LAYER_SITES, "final.norm", "logits")
IN_REGISTERS = {"manual": frozenset(), "fused": frozenset({"attn.q_rope", "attn.k_rope"})}


def sites_of(route: Route) -> tuple[str, ...]:
    """The sites that a route materialises."""
    return tuple(site for site in SITES if site not in IN_REGISTERS[route.kernel])


@dataclass(frozen=True)
class Taps:
    """Sites to read back, in which layers (None: all). Sites without a layer need no layer.

    `sink(layer, site, rows, arrays)` gets each site as soon as it is read, one array a row.
    """

    sites: frozenset[str]
    layers: frozenset[int] | None = None
    sink: Callable[[int, str, Sequence, Sequence[np.ndarray]], None] | None = None

    @classmethod
    def of(cls, sites: Iterable[str], layers: Iterable[int] | None = None, sink=None) -> "Taps":
        return cls(frozenset(sites), None if layers is None else frozenset(layers), sink)

    def wants(self, layer: int, site: str) -> bool:
        in_layer = layer == NO_LAYER or self.layers is None or layer in self.layers
        return site in self.sites and in_layer

    def check(self, sites: Sequence[str], layers: int):
        """Raises UnknownSite if a site is not one of `sites`, or a layer is beyond `layers`."""
        if unknown := sorted(self.sites - set(sites)):
            raise UnknownSite(
                f"this route has no site {', '.join(unknown)}: it has {', '.join(sites)}"
            )
        if beyond := sorted(set(self.layers or ()) - set(range(layers))):
            raise UnknownSite(f"no layer {', '.join(map(str, beyond))}: layers are 0..{layers - 1}")


NO_TAPS = Taps(frozenset())


@dataclass(frozen=True)
class Step:
    """One token through the model.

    Attributes:
      top1: the device's argmax of the logits.
      taps: (layer, site) -> array with a leading T = 1 (kv.k and kv.v: the live slab, SKH).
    """

    position: int
    logits_V: np.ndarray
    top1: int
    taps: dict[tuple[int, str], np.ndarray]
    launches: tuple[LaunchRecord, ...] = field(repr=False)


@dataclass(frozen=True)
class Generation:
    """What a run of replayed passes chose and cost. On an emulated device the time is the CPU's.

    Attributes:
      launches_per_token: kernels, which one graph launch starts.
      host_ms_per_token: of the host's own work, without kernels and without waiting for them.
    """

    tokens: tuple[int, ...]
    launches_per_token: int
    ms_per_token: float
    host_ms_per_token: float
