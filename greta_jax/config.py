"""The model's hyperparameters, from GGUF keys: each key is used, ignored by name, or refused."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from greta_jax.architectures import ARCHITECTURES, NUMBER_KEYS, Architecture
from greta_jax.errors import ConfigError
from greta_jax.rope import Rope, RopeScaling, scaling_of

IGNORED_PREFIXES = ("general.", "tokenizer.", "quantize.imatrix.", "split.")
"""Descriptions, the tokenizer's keys (see greta_jax.tokenizer), and the quantiser's notes."""
SOFTMAX_GATING = 1
"""gguf.ExpertGatingFuncType.SOFTMAX."""


@dataclass(frozen=True)
class LayerConfig:
    """What the ops of one layer need to know; equal for equal layers, so they compile once."""

    heads: int
    kv_heads: int
    head_dim: int
    rms_eps: float
    score_scale: float
    score_cap: float | None = None
    window: int | None = None
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float | None = None
    experts_used: int = 0


@dataclass(frozen=True)
class LlamaConfig:
    """A complete description of a Llama. Dimension letters as in WORKSPACE_NOTES.md."""

    architecture: str
    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    rms_eps: float
    rope_base: float
    rope_dim: int
    rope_scaling: RopeScaling | None = None
    rope_factors: tuple[float, ...] | None = None
    """Divisors of the rotation frequencies, from a tensor of the file, rope_dim/2 of them."""
    window_rope_base: float = 0.0
    score_scale: float | None = None
    score_cap: float | None = None
    logit_cap: float | None = None
    logit_scale: float = 1.0
    residual_scale: float = 1.0
    embed_scale: float = 1.0
    window: int | None = None
    window_every: int = 1
    experts: int = 0
    experts_used: int = 0

    @property
    def row(self) -> Architecture:
        """What its architecture declares."""
        return ARCHITECTURES[self.architecture]

    def windowed(self, layer: int) -> bool:
        """True if the layer's attention sees a sliding window only."""
        every = self.window_every
        return self.window is not None and (every == 1 or (layer + 1) % every != 0)

    @property
    def dimensions(self) -> dict[str, int]:
        """Size by dimension letter."""
        return {
            "L": self.layers,
            "D": self.dim,
            "N": self.heads,
            "K": self.kv_heads,
            "H": self.head_dim,
            "F": self.ffn,
            "V": self.vocab,
            "E": self.experts,
        }

    def layer(self, layer: int) -> LayerConfig:
        """What the ops of one layer need."""
        wide = self.layers == self.row.wide_scale_layers
        score_scale = (self.dim // self.heads if wide else self.head_dim) ** -0.5
        return LayerConfig(
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.rms_eps,
            self.score_scale or score_scale,
            self.score_cap,
            self.window if self.windowed(layer) else None,
            self.residual_scale,
            self.logit_scale,
            self.logit_cap,
            self.experts_used,
        )

    def rotation(self, positions_T: np.ndarray, layer: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Cosine and sine [T, R] in fp64, R = rope_dim/2."""
        return self.rope_of(layer).tables(positions_T)

    def rope_of(self, layer: int) -> Rope:
        """The rotation of one layer."""
        local = self.windowed(layer)
        base = self.window_rope_base if local and self.window_rope_base else self.rope_base
        scaling = None if local and self.row.window_unscaled else self.rope_scaling
        return Rope(base, self.rope_dim, scaling, self.rope_factors)

    @classmethod
    def from_gguf(cls, metadata: dict[str, Any], where: str = "metadata") -> "LlamaConfig":
        """Builds the configuration.

        Raises:
          ConfigError: unknown architecture; a key is missing, unknown, mistyped or contradictory.
        """
        return _KeyReader(metadata, where).config()


class _KeyReader:
    """Takes keys out of the metadata and refuses whatever is left."""

    def __init__(self, metadata: dict[str, Any], where: str):
        self.metadata, self.where = metadata, where
        self.unused = {k for k in metadata if not k.startswith(IGNORED_PREFIXES)}
        self.architecture = metadata.get("general.architecture")

    def fail(self, what: str, remedy: str) -> ConfigError:
        return ConfigError(what, where=self.where, remedy=remedy)

    def take(self, name: str, kind: type, default=None):
        """The value of `<architecture>.<name>`, which must be a positive number of that kind."""
        key = f"{self.architecture}.{name}"
        self.unused.discard(key)
        value = self.metadata.get(key, default)
        if value is None:
            raise self.fail(f"key {key!r} is missing", "convert the model again")
        accepted = (int, float) if kind is float else int
        number = isinstance(value, accepted) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise self.fail(f"{key} is {value!r}", f"it must be a positive {kind.__name__}")
        return kind(value)

    def option(self, name: str, kind: type, default=None):
        """As `take`, but the default where the key is missing or 0, which some converters write."""
        key = f"{self.architecture}.{name}"
        self.unused.discard(key)
        value = self.metadata.get(key)
        given = value is not None and not (isinstance(value, int) and value == 0)
        return self.take(name, kind) if given else default

    def text(self, name: str, allowed: tuple[str, ...], default: str) -> str:
        """One of some words."""
        key = f"{self.architecture}.{name}"
        self.unused.discard(key)
        value = self.metadata.get(key, default)
        if not isinstance(value, str) or value not in allowed:
            raise self.fail(f"{key} is {value!r}", f"use {', '.join(allowed)}")
        return value

    def require(self, condition: bool, what: str) -> None:
        if not condition:
            raise self.fail(f"contradictory keys: {what}", "convert the model again")

    def config(self) -> LlamaConfig:
        if not isinstance(self.architecture, str) or self.architecture not in ARCHITECTURES:
            raise self.fail(
                f"architecture {self.architecture!r} is not supported",
                f"supported: {', '.join(ARCHITECTURES)}",
            )
        dim, heads = self.take("embedding_length", int), self.take("attention.head_count", int)
        kv_heads = self.take("attention.head_count_kv", int, heads)
        self.require(heads % kv_heads == 0, f"{heads} heads do not share {kv_heads} kv heads")
        head_dim = self.take("attention.key_length", int, max(dim // heads, 1))
        value_dim = self.take("attention.value_length", int, head_dim)
        rope_dim = self.take("rope.dimension_count", int, head_dim)
        self.require(head_dim % 2 == 0, f"a head of {head_dim} cannot be rotated in pairs")
        self.require(value_dim == head_dim, f"key_length {head_dim}, value_length {value_dim}")
        part = rope_dim < head_dim and ARCHITECTURES[self.architecture].rope == "halves"
        self.require(
            rope_dim % 2 == 0 and (part or rope_dim == head_dim),
            f"heads of {head_dim}, rope.dimension_count {rope_dim}",
        )
        has_key = f"{self.architecture}.attention.key_length" in self.metadata
        self.require(
            has_key or dim % heads == 0,
            f"embedding_length {dim} over {heads} heads, no attention.key_length",
        )
        context, rope_base = self.take("context_length", int), self.base("rope.freq_base", 10000.0)
        experts = self.experts()
        config = LlamaConfig(
            layers=self.take("block_count", int),
            dim=dim,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocab=self.vocab(),
            context=context,
            rms_eps=self.take("attention.layer_norm_rms_epsilon", float),
            rope_base=rope_base,
            rope_dim=rope_dim,
            rope_scaling=scaling_of(self, context),
            window=self.option("attention.sliding_window", int),
            **self.windows(),
            **experts,
            **self.numbers(dim),
        )
        if self.unused:
            raise self.fail(
                f"unknown keys: {', '.join(sorted(self.unused))}",
                "they may change the model, so it is refused: add them to greta_jax/config.py",
            )
        return config

    def experts(self) -> dict[str, Any]:
        """The architecture's row, the ffn's size, and the experts if it has any."""
        row, ffn = self.architecture, self.take("feed_forward_length", int)
        count, used = self.option("expert_count", int, 0), self.option("expert_used_count", int, 0)
        if count and row == "llama":
            row = "llama-moe"
        if not ARCHITECTURES[row].experts:
            self.require(not count and not used, f"a {row} model with {count} experts")
            return {"architecture": row, "ffn": ffn}
        gating = self.option("expert_gating_func", int, SOFTMAX_GATING)
        self.require(0 < used <= count, f"{used} of {count} experts are used")
        self.require(gating == SOFTMAX_GATING, f"expert_gating_func {gating} is no softmax")
        ffn = self.option("expert_feed_forward_length", int, ffn)
        return {"architecture": row, "ffn": ffn, "experts": count, "experts_used": used}

    def base(self, name: str, default: float) -> float:
        """A base of RoPE, which is above 1 where it is given (0: the model's other base)."""
        base = self.option(name, float, default)
        self.require(base == 0 or base > 1, f"{name} {base}")
        return base

    def windows(self) -> dict[str, Any]:
        """Which layers have the window, and the RoPE base of theirs."""
        row, key = ARCHITECTURES[self.architecture], "attention.sliding_window_pattern"
        base = self.base("rope.freq_base_swa", row.window_rope_base)
        pattern = self.metadata.get(f"{self.architecture}.{key}")
        every = row.window_every
        if isinstance(pattern, np.ndarray):
            self.unused.discard(f"{self.architecture}.{key}")
            wide = [i + 1 for i, windowed in enumerate(pattern.tolist()) if not windowed]
            every = wide[0] if wide else 1
            expected = [every > 1 and i % every == 0 for i in range(1, len(pattern) + 1)]
            told = [not windowed for windowed in pattern.tolist()]
            self.require(told == expected, f"{key} has no period")
        elif pattern is not None:
            every = self.take(key, int)
            self.require(every > 1, f"{key} {every}")
        return {"window_every": every, "window_rope_base": base}

    def numbers(self, dim: int) -> dict[str, float]:
        """The optional multipliers and caps that are there."""
        given = {
            field: self.take(name, float)
            for name, field in NUMBER_KEYS.items()
            if f"{self.architecture}.{name}" in self.metadata
        }
        if ARCHITECTURES[self.architecture].embed_by_sqrt_dim:
            given["embed_scale"] = float(dim) ** 0.5
        return given

    def vocab(self) -> int:
        """Rows of the embedding: the key if there is one; the token list must not contradict it."""
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        listed = len(tokens) if isinstance(tokens, list) else None
        vocab = self.take("vocab_size", int, listed)
        self.require(listed in (None, vocab), f"vocab_size {vocab}, but {listed} tokens listed")
        return vocab
