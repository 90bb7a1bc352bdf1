"""The oracle: a GGUF model evaluated under a Policy, prefill and decode, with taps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from greta_jax import accelerator
from greta_jax.cache import KVCache
from greta_jax.config import LlamaConfig
from greta_jax.errors import ContextOverflow, SiteError
from greta_jax.gguf.reader import GgufFile
from greta_jax.graph import FINAL_NORM, KV_SITES, LOGITS, Op, evaluate, layer_ops
from greta_jax.precision import FLOATS, Policy, carrier, stored
from greta_jax.sharding import ONE_DEVICE, OneDevice, Sharded
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


@dataclass
class Run:
    """A forward under way: the residual stream, the growing cache and what was tapped."""

    sources: dict[str, Any]
    before: KVCache
    tokens: int
    start: int
    taps: Taps
    place: OneDevice
    x_TD: jax.Array | None = None

    def __post_init__(self):
        self.taken: dict[tuple[int, str], np.ndarray] = {}
        self.slabs: dict[str, dict[int, jax.Array]] = {site: {} for site in KV_SITES}

    def tap(self, layer: int, site: str, value) -> None:
        """Keeps a tensor that was asked for."""
        if self.taps.wants(layer, site):
            self.taken[layer, site] = _live(
                site, self.place.to_host(value), self.tokens, self.start + self.tokens
            )

    def append(self, site: str, layer: int, rows_TKH: jax.Array) -> jax.Array:
        """The slab of a layer with the new rows in it."""
        slab_SKH = getattr(self.before, KV_SITES[site])[layer]
        slab_SKH = _append(slab_SKH, rows_TKH, self.start)
        self.slabs[site][layer] = slab_SKH
        return slab_SKH

    def cache(self) -> KVCache:
        """The cache after this forward."""
        k, v = (tuple(self.slabs[site].values()) for site in KV_SITES)
        return KVCache(k, v, self.start + self.tokens)


class Oracle:
    """One model file under one policy. Build it with `Oracle.open`."""

    def __init__(self, file: GgufFile, config: LlamaConfig, weights: ModelWeights, policy: Policy):
        self.file, self.config, self.weights, self.policy = file, config, weights, policy

    @property
    def place(self) -> OneDevice:
        """Which devices compute."""
        return self.weights.place

    @classmethod
    def open(
        cls,
        path: str | Path,
        policy: Policy,
        resident: bool | None = None,
        context: int | None = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> "Oracle":
        """Reads the header and checks keys and tensors; weights are decoded when first needed.

        `resident`: keep decoded weights in memory (None: if they take less than a quarter of it).
        `context`: the most tokens of a run (None: the model's context). As in llama.cpp, it chooses
        between the short and the long RoPE factors of files that have both.
        `devices`: split heads and ffn over them (greta_jax.sharding), such as `jax.devices()`.

        Raises:
          GgufError, TensorError, ConfigError: the file is not a model that can be computed, or not
          over so many devices.
          ContextOverflow: `context` is more than the model's.
        """
        file = GgufFile(path)
        config = LlamaConfig.from_gguf(file.metadata, file.path)
        if context is not None and not 0 < context <= config.context:
            raise ContextOverflow(
                f"a context of {context} is not within the model's of {config.context}",
                where=file.path,
                remedy="ask for less",
            )
        config = replace(config, context=context or config.context)
        config = replace(config, rope_factors=rope_factors(file, config))
        place = ONE_DEVICE if devices is None else Sharded(config, devices)
        weights = ModelWeights(file, config, weight_store(policy), resident, place)
        return cls(file, config, weights, policy)

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
        run = self.begin(ids_T, cache, taps)
        for layer in range(self.config.layers):
            self.run_layer(run, layer)
        logits_TV = self.finish(run)
        return Step(logits_TV, run.taken, run.cache())

    def begin(self, ids_T: np.ndarray, cache: KVCache, taps: Taps) -> "Run":
        """Checks the tokens and embeds them. Raises as `prefill`."""
        self._check(ids_T, cache, taps)
        T, start = len(ids_T), cache.length
        ids_T = np.pad(ids_T, (0, padding(T)))
        positions_T = start + np.minimum(np.arange(len(ids_T)), T - 1)
        grown = cache.grown_to(start + len(ids_T))
        run = Run(self.sources(positions_T), grown, T, start, taps, self.place)
        run.x_TD = self.embed(ids_T)
        run.tap(MODEL_LAYER, "embed", run.x_TD)
        return run

    def run_layer(self, run: "Run", layer: int) -> None:
        """One layer: every op of the table, in order."""
        self.weights.send_ahead(layer)
        tensors = {**run.sources, "resid.in": run.x_TD}
        tensors["rotation"] = run.sources["rotation"][self.config.rope_of(layer)]
        for op in self.ops:
            value = self.apply(op, layer, tensors)
            if op.site in KV_SITES:
                value = run.append(op.site, layer, value)
            tensors[op.site] = value
            run.tap(layer, op.site, value)
        run.x_TD = tensors["resid.out"]

    def finish(self, run: "Run") -> np.ndarray:
        """The final norm and the logits TV."""
        x_TD = self.apply(FINAL_NORM, MODEL_LAYER, {"resid.in": run.x_TD})
        run.tap(MODEL_LAYER, "final.norm", x_TD)
        logits_TV = self.apply(LOGITS, MODEL_LAYER, {"final.norm": x_TD})
        logits_TV = self.place.to_host(logits_TV)[: run.tokens]
        self.weights.settle()
        run.tap(MODEL_LAYER, "logits", logits_TV)
        return logits_TV

    def embed(self, ids_T: np.ndarray) -> jax.Array:
        """Rows of the embedding, TD, scaled where the model does so."""
        how = self.policy.at("embed", MODEL_LAYER)
        rows_TD = self.place.everywhere(self.weights.embed_rows(ids_T)).astype(how.compute)
        if self.config.embed_scale != 1.0:
            rows_TD = rows_TD * rows_TD.dtype.type(self.config.embed_scale)
        return stored(rows_TD, how.store)

    @cached_property
    def ops(self) -> tuple[Op, ...]:
        """The table of this model's layers."""
        return layer_ops(self.config.row, self.config.residual_scale != 1.0)

    def sources(self, positions_T: np.ndarray) -> dict[str, Any]:
        """The positions, and their rotations by Rope, made in fp64 on the host."""
        ropes = {self.config.rope_of(layer) for layer in range(self.config.layers)}
        rotations = {
            rope: tuple(self.place.everywhere(table) for table in rope.tables(positions_T))
            for rope in ropes
        }
        positions = self.place.everywhere(np.asarray(positions_T, np.int32))
        return {"positions": positions, "rotation": rotations}

    def apply(self, op: Op, layer: int, tensors: dict) -> jax.Array:
        """One op of the table on tensors by name, with this oracle's weights and policy."""
        *_, whole = self.applying(op, layer, tensors)
        return whole

    def applying(self, op: Op, layer: int, tensors: dict) -> Iterator[jax.Array | None]:
        """`apply` in steps, one after each chunk of a matrix; the last yields the result.

        Several oracles that step together can share each chunk while it is in memory.
        """
        inputs = []
        for name in op.inputs:
            value = tensors[name]
            inputs.extend(value if isinstance(value, tuple) else (value,))
        inputs = self.place.inputs(op.site, inputs)
        cfg, how = self.config.layer(layer), self.policy.at(op.site, layer)
        if not op.output:
            weights = [w for name in op.weights for w in self.weights.chunks(name, layer)]
            yield evaluate(op, how, cfg, inputs, weights)
            return
        # What saturates hides an infinity from whoever looks at products.
        shown = {how.weight, how.store} <= set(FLOATS) and cfg.logit_cap is None
        parts = []
        for w_EX in self.weights.chunks(op.weights[0], layer, checked=not shown):
            parts.append(evaluate(op, how, cfg, inputs, (w_EX,)))
            accelerator.pace(parts)
            yield None
        if shown:
            self.weights.check_products(op.weights[0], layer, parts)
        whole_TE = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
        if op.bias is not None:
            (bias_E,) = self.weights.chunks(op.bias, layer)
            whole_TE = stored(whole_TE + bias_E.astype(whole_TE.dtype)[None, :], how.store)
        sizes = [self.config.dimensions[letter] for letter in op.output]
        yield whole_TE if len(sizes) == 1 else whole_TE.reshape(-1, *sizes)

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
