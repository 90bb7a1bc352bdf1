"""One op of the oracle evaluated on somebody else's captured inputs.

This is op64 of the error split `out_got - out_ref = local + propagated`: given the inputs that an
engine really had, what should it have computed?
"""

import jax.numpy as jnp
import numpy as np

from greta_jax.cache import BUCKET, pad_slab
from greta_jax.errors import SiteError
from greta_jax.graph import FINAL_NORM, INPUTS, KV_SITES, LOGITS
from greta_jax.model import Oracle, padding
from greta_jax.taps import MODEL_LAYER, MODEL_SITES, check_site

MODEL_OP = {op.site: op for op in (FINAL_NORM, LOGITS)}
UNSEEN = {"attn.scores": -np.inf, "attn.probs": 0.0}
"""What the tensors of attention that have a column a slot hold where nothing is to be seen."""
SLOT_SITES = tuple(UNSEEN)


def replay(oracle: Oracle, site: str, layer: int, inputs: dict) -> np.ndarray:
    """The site's tensor that follows from `inputs` under the oracle's policy.

    `inputs` maps names to arrays: INPUTS[site], or any set of earlier sites of the layer that
    determines it (from `resid.mid`, for example, all of the ffn). Every array has its T tokens
    first, except the live slabs `kv.k`, `kv.v` [S, K, H]. `kv.k` and `kv.v` as *sites* are the
    rows appended for those tokens, TKH. Attention needs `positions` only if the queries are not
    the last T positions of the slab (or of the scores, or weights, that are given in its place).

    Raises:
      SiteError: unknown site or layer; the inputs do not determine the site, or are not needed.
    """
    return Replays(oracle, layer)(site, inputs)


class Replays:
    """Replays at one layer that may share tensors: of attention, what follows from the same arrays
    is computed once."""

    def __init__(self, oracle: Oracle, layer: int):
        self.oracle, self.layer = oracle, layer
        self._kept: dict[tuple, tuple] = {}

    def __call__(self, site: str, inputs: dict) -> np.ndarray:
        """As `replay`."""
        oracle, layer = self.oracle, self.layer
        check_site(site)
        if site not in MODEL_SITES and not 0 <= layer < oracle.config.layers:
            raise SiteError(
                f"layer {layer} does not exist",
                remedy=f"the model has layers 0 to {oracle.config.layers - 1}",
            )
        replayer = _Replayer(oracle, layer, inputs, self._kept)
        value = replayer.site(site)
        unused = set(inputs) - replayer.used - {"positions"}
        if unused:
            raise SiteError(
                f"{site} does not depend on {', '.join(sorted(unused))} given the other inputs",
                remedy=f"it takes {', '.join(INPUTS.get(site, ()))}",
            )
        value = np.asarray(value)[: replayer.tokens]
        oracle.weights.settle()
        return value[..., : replayer.slots] if site in SLOT_SITES else value


class _Replayer:
    """Finds a tensor among the inputs or computes it from the table's."""

    def __init__(self, oracle: Oracle, layer: int, inputs: dict, kept: dict):
        self.oracle, self.layer, self.inputs, self.kept = oracle, layer, inputs, kept
        self.used: set[str] = set()
        self.table = {op.site: op for op in oracle.ops}
        lengths = {len(v) for name, v in inputs.items() if name not in KV_SITES}
        if len(lengths) != 1:
            raise SiteError(
                f"the inputs have {sorted(lengths)} tokens",
                remedy="give all of them for the same tokens (slabs apart)",
            )
        (self.tokens,) = lengths
        slots = [len(v) for name, v in inputs.items() if name in KV_SITES]
        slots += [np.shape(v)[-1] for name, v in inputs.items() if name in SLOT_SITES]
        self.slots = max(slots, default=0)
        self.sources = oracle.sources(self.padded(self.positions()))

    def positions(self) -> np.ndarray:
        if "positions" in self.inputs:
            return np.asarray(self.inputs["positions"])
        return self.slots - self.tokens + np.arange(self.tokens)

    def site(self, site: str):
        if site == "embed":
            return self.oracle.embed(self.padded(np.asarray(self.tensor("token_ids", site))))
        op = MODEL_OP.get(site) or self.table.get(site)
        if op is None:
            raise SiteError(f"a {self.oracle.config.architecture} layer has no {site}")
        layer = MODEL_LAYER if site in MODEL_OP else self.layer
        tensors = {name: self.tensor(name, site) for name in op.inputs}
        return self.oracle.apply(op, layer, tensors)

    def tensor(self, name: str, wanted_by: str):
        if name in self.inputs and name != "positions":
            self.used.add(name)
            value = np.asarray(self.inputs[name])
            if name == "token_ids":
                return value
            if name in SLOT_SITES:
                value = _pad_slots(value, UNSEEN[name])
            return jnp.asarray(pad_slab(value) if name in KV_SITES else self.padded(value))
        if name in ("positions", "rotation"):
            if "positions" not in self.inputs and not self.slots:
                raise self.missing("positions", wanted_by)
            if name == "rotation":
                return self.sources[name][self.oracle.config.rope_of(self.layer)]
            return self.sources[name]
        if name in SLOT_SITES:
            return self.shared(name)
        if name in self.table and name not in KV_SITES and wanted_by != FINAL_NORM.site:
            return self.site(name)
        if name == FINAL_NORM.site:
            return self.site(name)
        raise self.missing(name, wanted_by)

    def shared(self, site: str):
        """Scores or weights, which are large: kept, with the arrays that they follow from."""
        names = sorted(self.leaves(site))
        arrays = [self.inputs[name] for name in names]
        key = site, self.tokens, self.slots, *zip(names, map(id, arrays), strict=True)
        if key not in self.kept:
            self.kept[key] = self.site(site), arrays
        self.used.update(names)
        return self.kept[key][0]

    def leaves(self, site: str) -> set[str]:
        """The inputs from which a site of the layer is computed."""
        found = {"positions"} & set(self.inputs)
        for name in self.table[site].inputs:
            if name in self.inputs:
                found.add(name)
            elif name in self.table and name not in KV_SITES:
                found |= self.leaves(name)
        return found

    def padded(self, value_T: np.ndarray) -> np.ndarray:
        extra = padding(len(value_T))
        return np.pad(value_T, ((0, extra), *[(0, 0)] * (value_T.ndim - 1)))

    def missing(self, name: str, wanted_by: str) -> SiteError:
        return SiteError(
            f"{wanted_by} cannot be computed without {name}",
            remedy=f"{wanted_by} takes {', '.join(INPUTS.get(wanted_by, ()))}",
        )


def _pad_slots(value_TNS: np.ndarray, unseen: float) -> np.ndarray:
    """As many slots as a padded slab has."""
    extra = -value_TNS.shape[-1] % BUCKET
    return np.pad(value_TNS, ((0, 0), (0, 0), (0, extra)), constant_values=unseen)


__all__ = ["INPUTS", "replay"]
