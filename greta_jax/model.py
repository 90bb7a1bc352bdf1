"""The oracle: a GGUF model evaluated under a Policy, prefill and decode, with taps."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from greta_jax.cache import KVCache
from greta_jax.config import LlamaConfig
from greta_jax.errors import ContextOverflow, SiteError
from greta_jax.gguf.reader import GgufFile
from greta_jax.graph import FINAL_NORM, KV_SITES, LAYER_OPS, LOGITS, Op, evaluate
from greta_jax.precision import Policy, carrier, stored
from greta_jax.taps import MODEL_LAYER, Taps
from greta_jax.tokenizer import Tokenizer
from greta_jax.weights import ModelWeights, rope_factors

TOKEN_BUCKET = 16
"""Tokens are padded to a multiple of this (or left alone at T = 1), so that lengths share code."""


@dataclass(frozen=True)
class Step:
    """What a forward returns. `taps` maps (layer, site) to numpy arrays of the T tokens given."""

    logits_TV: np.ndarray
    taps: dict[tuple[int, str], np.ndarray]
    cache: KVCache


class Oracle:
    """One model file under one policy. Build it with `Oracle.open`."""

    def __init__(self, file: GgufFile, config: LlamaConfig, weights: ModelWeights, policy: Policy):
        self.file, self.config, self.weights, self.policy = file, config, weights, policy

    @classmethod
    def open(cls, path: str | Path, policy: Policy) -> "Oracle":
        """Reads the header and checks keys and tensors; weights are loaded when first needed.

        Raises:
          GgufError, TensorError, ConfigError: the file is not a model that can be computed.
        """
        file = GgufFile(path)
        config = LlamaConfig.from_gguf(file.metadata, file.path)
        config = replace(config, rope_factors=rope_factors(file, config.head_dim))
        return cls(file, config, ModelWeights(file, config, weight_store(policy)), policy)

    def with_policy(self, policy: Policy) -> "Oracle":
        """The same file under another policy; weights of an equal storage dtype are shared."""
        store = weight_store(policy)
        weights = self.weights if store == self.weights.store else self.weights.with_store(store)
        return Oracle(self.file, self.config, weights, policy)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The file's own tokenizer. Raises TokenizerError if it has none that is supported."""
        return Tokenizer.from_gguf(self.file.metadata, self.file.path)

    @property
    def model_sha256(self) -> str:
        """Digest of the model file, computed on first use."""
        return self.file.sha256

    def empty_cache(self) -> KVCache:
        """A cache of no positions in the policy's KV dtype."""
        c = self.config
        return KVCache.empty(c.layers, c.kv_heads, c.head_dim, self.policy.kv_carrier)

    def prefill(self, token_ids, taps: Taps = Taps(), cache: KVCache | None = None) -> Step:  # noqa: B008
        """All tokens at once, after those of `cache` if one is given.

        Raises:
          ContextOverflow: more positions than the model's context.
          SiteError: a tapped layer does not exist, or a token id is outside the vocabulary.
        """
        return self._forward(np.asarray(token_ids, np.int64).reshape(-1), cache, taps)

    def decode(self, cache: KVCache, token_id: int, taps: Taps = Taps()) -> Step:  # noqa: B008
        """One token after those of `cache`, which stays valid. Raises as `prefill`."""
        return self._forward(np.asarray([token_id], np.int64), cache, taps)

    def _forward(self, ids_T: np.ndarray, cache: KVCache | None, taps: Taps) -> Step:
        cache = self.empty_cache() if cache is None else cache
        self._check(ids_T, cache, taps)
        T, start, taken = len(ids_T), cache.length, {}
        ids_T = np.pad(ids_T, (0, padding(T)))
        sources = self.sources(start + np.minimum(np.arange(len(ids_T)), T - 1))
        cache = cache.grown_to(start + len(ids_T))

        def tap(layer: int, site: str, value: jax.Array) -> None:
            if taps.wants(layer, site):
                taken[layer, site] = _live(site, np.asarray(value), T, start + T)

        x_TD = self.embed(ids_T)
        tap(MODEL_LAYER, "embed", x_TD)
        slabs = {"kv.k": [], "kv.v": []}
        for layer in range(self.config.layers):
            tensors = {**sources, "resid.in": x_TD}
            for op in LAYER_OPS:
                value = self.apply(op, layer, tensors)
                if op.site in KV_SITES:
                    slab_SKH = getattr(cache, KV_SITES[op.site])[layer]
                    value = _append(slab_SKH, value, start)
                    slabs[op.site].append(value)
                tensors[op.site] = value
                tap(layer, op.site, value)
            x_TD = tensors["resid.out"]
        x_TD = self.apply(FINAL_NORM, MODEL_LAYER, {"resid.in": x_TD})
        tap(MODEL_LAYER, "final.norm", x_TD)
        logits_TV = self.unembed(x_TD)
        tap(MODEL_LAYER, "logits", logits_TV)
        cache = KVCache(tuple(slabs["kv.k"]), tuple(slabs["kv.v"]), start + T)
        return Step(np.asarray(logits_TV)[:T], taken, cache)

    def embed(self, ids_T: np.ndarray) -> jax.Array:
        """Rows of the embedding, TD."""
        how = self.policy.at("embed", MODEL_LAYER)
        return stored(self.weights.embed_rows(ids_T).astype(how.compute), how.store)

    def unembed(self, x_TD: jax.Array) -> jax.Array:
        """Logits TV, a block of the vocabulary at a time."""
        cfg, how = self.config.layer(0), self.policy.at("logits", MODEL_LAYER)
        chunks = self.weights.unembed_chunks()
        parts = [evaluate(LOGITS, how, cfg, (x_TD,), (w_VD,)) for w_VD in chunks]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

    def sources(self, positions_T: np.ndarray) -> dict[str, jax.Array]:
        """The positions and their rotation, made in fp64 on the host."""
        rotation = tuple(jnp.asarray(t) for t in self.config.rotation(positions_T))
        return {"positions": jnp.asarray(positions_T, jnp.int32), "rotation": rotation}

    def apply(self, op: Op, layer: int, tensors: dict) -> jax.Array:
        """One op of the table on tensors by name, with this oracle's weights and policy."""
        inputs = []
        for name in op.inputs:
            value = tensors[name]
            inputs.extend(value if isinstance(value, tuple) else (value,))
        if layer == MODEL_LAYER:
            weights = [self._model_weight(name) for name in op.weights]
        else:
            weights = [self.weights.layer(layer)[name] for name in op.weights]
        how = self.policy.at(op.site, layer)
        return evaluate(op, how, self.config.layer(layer), inputs, weights)

    def _model_weight(self, name: str) -> jax.Array:
        if name not in self._model_weights:
            self._model_weights[name] = self.weights.load(name)
        return self._model_weights[name]

    @cached_property
    def _model_weights(self) -> dict[str, jax.Array]:
        return {}

    def _check(self, ids_T: np.ndarray, cache: KVCache, taps: Taps) -> None:
        taps.check_layers(self.config.layers)
        total = cache.length + len(ids_T)
        if total > self.config.context:
            raise ContextOverflow(
                f"{total} tokens do not fit the model's context of {self.config.context}",
                where=self.file.path,
                remedy="shorten the prompt or use a model with a longer context",
            )
        if len(ids_T) == 0:
            raise SiteError("no tokens were given", remedy="give at least one token id")
        outside = ids_T[(ids_T < 0) | (ids_T >= self.config.vocab)]
        if len(outside):
            raise SiteError(
                f"token id {outside[0]} is outside the vocabulary of {self.config.vocab}",
                remedy="encode the text with this model's own tokenizer",
            )


def weight_store(policy: Policy) -> str:
    """The dtype that weights are kept in; rounding to the policy's storage happens in each op."""
    ruled = any("weight" in dict(rule.changes) for rule in policy.rules)
    return "float32" if ruled else carrier(policy.weight, "float32")


def padding(tokens: int) -> int:
    """Rows to add to `tokens` rows so that lengths share compiled code."""
    return 0 if tokens == 1 else -tokens % TOKEN_BUCKET


def _live(site: str, value: np.ndarray, tokens: int, slots: int) -> np.ndarray:
    if site in KV_SITES:
        return value[:slots]
    if site in ("attn.scores", "attn.probs"):
        return value[:tokens, :, :slots]
    return value[:tokens]


@jax.jit
def _append(slab_SKH, rows_TKH, start):
    return jax.lax.dynamic_update_slice(slab_SKH, rows_TKH.astype(slab_SKH.dtype), (start, 0, 0))
