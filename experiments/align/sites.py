"""The sites of a transformer in dataflow order, their shapes, and the names GRETA gave them."""

import difflib
from collections.abc import Iterable, Mapping

from experiments.align.errors import UnknownSite

NO_LAYER = -1

SHAPES = {
    "embed": "TD",
    "attn.norm": "TD",
    "attn.q": "TNH",
    "attn.k": "TKH",
    "attn.v": "TKH",
    "attn.q_rope": "TNH",
    "attn.k_rope": "TKH",
    "kv.k": "SKH",
    "kv.v": "SKH",
    "attn.scores": "TNS",
    "attn.probs": "TNS",
    "attn.out": "TNH",
    "attn.proj": "TD",
    "resid.mid": "TD",
    "ffn.norm": "TD",
    "ffn.gate": "TF",
    "ffn.up": "TF",
    "ffn.act": "TF",
    "ffn.down": "TD",
    "resid.out": "TD",
    "final.norm": "TD",
    "logits": "TV",
}
SITES = tuple(SHAPES)
INDEX = {site: index for index, site in enumerate(SITES)}
HEAD_SITES = ("embed",)
TAIL_SITES = ("final.norm", "logits")
LAYER_SITES = tuple(site for site in SITES if site not in HEAD_SITES + TAIL_SITES)

# An engine may reproduce the oracle's bits there: a copy, or a single rounding of exact terms.
ROUNDS_ONCE = frozenset({"embed", "kv.k", "kv.v", "resid.mid", "resid.out"})

ALIASES = {
    "q": ("attn.q", "attn.q_rope"),
    "k": ("attn.k", "attn.k_rope", "kv.k"),
    "v": ("attn.v", "kv.v"),
    "attn_out": ("attn.out",),
    "wo_out": ("attn.proj",),
    "x_after_attn": ("resid.mid",),
    "ffn_norm": ("ffn.norm",),
    "mlp_out": ("ffn.down",),
    "x_out": ("resid.out",),
    "final_norm": ("final.norm",),
    "lm_head_in": ("final.norm",),
}


def greta_name(site: str) -> str:
    """The name GRETA's traces use for `site`, or the site itself where they have none."""
    exact = [alias for alias, sites in ALIASES.items() if sites[0] == site]
    return exact[0] if exact else site


def resolve(names: Iterable[str]) -> tuple[str, ...]:
    """Sites in dataflow order for sites, aliases or `all`. Unknown names raise UnknownSite."""
    chosen = set()
    for name in names:
        if name == "all":
            chosen.update(SITES)
        elif name in ALIASES:
            chosen.update(ALIASES[name])
        elif name in SHAPES:
            chosen.add(name)
        else:
            known = (*SITES, *ALIASES, "all")
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise UnknownSite(f"unknown site {name!r}: {hint}")
    return tuple(site for site in SITES if site in chosen)


def order(layer: int, site: str) -> tuple[int, int, int]:
    """Sorts (layer, site) into dataflow order: embed, the layers, final.norm, logits."""
    stage = 0 if site in HEAD_SITES else 2 if site in TAIL_SITES else 1
    return stage, layer, INDEX[site]


def places(layers: Iterable[int], sites: Iterable[str]) -> list[tuple[int, str]]:
    """Every (layer, site) of the chosen layers and sites, in dataflow order."""
    layers = tuple(layers)
    found = []
    for site in sites:
        outside = site in HEAD_SITES + TAIL_SITES
        found += [(layer, site) for layer in ((NO_LAYER,) if outside else layers)]
    return sorted(found, key=lambda place: order(*place))


def name(layer: int, site: str) -> str:
    """`attn.out of layer 3`, or the bare site outside the layers."""
    return site if layer == NO_LAYER else f"{site} of layer {layer}"


def row_shape(site: str, dims: Mapping[str, int], position: int) -> tuple[int, ...]:
    """The shape of one token's tensor; S is the number of live slots after that token's append."""
    sizes = dict(dims, S=position + 1)
    return tuple(sizes[letter] for letter in SHAPES[site].removeprefix("T"))
