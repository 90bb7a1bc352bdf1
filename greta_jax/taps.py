"""Sites and taps: the names of the tensors that the oracle, the engine and the judge talk about."""

from collections.abc import Iterable
from dataclasses import dataclass

from greta_jax.errors import SiteError

LAYER_SITES = (
    "attn.norm",
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.q_rope",
    "attn.k_rope",
    "kv.k",
    "kv.v",
    "attn.scores",
    "attn.probs",
    "attn.out",
    "attn.proj",
    "resid.mid",
    "ffn.norm",
    "ffn.gate",
    "ffn.up",
    "ffn.act",
    "ffn.down",
    "resid.out",
)
MODEL_SITES = ("embed", "final.norm", "logits")
SITES = ("embed", *LAYER_SITES, "final.norm", "logits")
EXTRA_SITES = (
    *("attn.q_norm", "attn.k_norm", "attn.post_norm", "ffn.post_norm"),
    *("ffn.router", "ffn.route", "ffn.experts"),
)
"""Layer sites of architectures other than llama; outside the contract with engines.

ffn.router TE (before the softmax), ffn.route TE (weights, 0 where an expert is not chosen),
ffn.experts TED; with experts ffn.gate, ffn.up and ffn.act are TEF.
"""
MODEL_LAYER = -1
"""Layer index of `embed`, `final.norm` and `logits`."""


@dataclass(frozen=True)
class Taps:
    """Which tensors a forward returns. Empty by default; asking never changes a bit of the result.

    sites: names out of SITES. layers: 0-based, None for every layer; the sites of the whole
    model (`embed`, `final.norm`, `logits`) are taken whenever named, whatever the layers.
    """

    sites: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None

    def __post_init__(self):
        object.__setattr__(self, "sites", _as_tuple(self.sites))
        if self.layers is not None:
            object.__setattr__(self, "layers", _as_tuple(self.layers))
        for site in self.sites:
            check_site(site)

    @classmethod
    def everything(cls, layers: Iterable[int] | None = None) -> "Taps":
        """Every site, of the given layers or of all."""
        return cls(SITES, None if layers is None else tuple(layers))

    def check_layers(self, layers_in_model: int) -> None:
        """Raises SiteError for a layer that the model does not have."""
        for layer in self.layers or ():
            if not 0 <= layer < layers_in_model:
                raise SiteError(
                    f"layer {layer} does not exist",
                    remedy=f"the model has layers 0 to {layers_in_model - 1}",
                )

    def wants(self, layer: int, site: str) -> bool:
        """True if (layer, site) is asked for."""
        if site not in self.sites:
            return False
        return site in MODEL_SITES or self.layers is None or layer in self.layers


def check_site(site: str) -> None:
    """Raises SiteError for a name that is no site."""
    if site not in SITES and site not in EXTRA_SITES:
        raise SiteError(f"no site is called {site!r}", remedy=f"the sites are {', '.join(SITES)}")


def _as_tuple(values) -> tuple:
    return (values,) if isinstance(values, (str, int)) else tuple(values)
