"""The model's hyperparameters, from GGUF keys: each key is used, ignored by name, or refused."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from greta_jax.architectures import ARCHITECTURES, NUMBER_KEYS, Architecture
from greta_jax.errors import ConfigError

IGNORED_PREFIXES = ("general.", "tokenizer.", "quantize.imatrix.", "split.")
"""Descriptions, the tokenizer's keys (see greta_jax.tokenizer), and the quantiser's notes."""


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


@dataclass(frozen=True)
class LlamaConfig:
    """A complete description of a dense Llama. Dimension letters as in WORKSPACE_NOTES.md."""

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
    rope_factors: tuple[float, ...] | None = None
    """Divisors of the rotation frequencies (`rope_freqs.weight` of Llama 3.1), H/2 of them."""
    score_scale: float | None = None
    score_cap: float | None = None
    logit_cap: float | None = None
    logit_scale: float = 1.0
    residual_scale: float = 1.0
    embed_scale: float = 1.0
    window: int | None = None

    @property
    def row(self) -> Architecture:
        """What its architecture declares."""
        return ARCHITECTURES[self.architecture]

    def windowed(self, layer: int) -> bool:
        """True if the layer's attention sees a sliding window only."""
        every = self.row.window_every
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
        )

    def rotation(self, positions_T: np.ndarray, layer: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Cosine and sine [T, H/2], fp64, of position * base^(-2i/H) / factor_i (RoFormer)."""
        angle_TR = np.asarray(positions_T, np.float64)[:, None] * self.frequencies(layer)[None, :]
        return np.cos(angle_TR), np.sin(angle_TR)

    def frequencies(self, layer: int = 0) -> np.ndarray:
        """Radians a position by which each of the H/2 pairs of a head turns."""
        exponent = -2.0 * np.arange(self.head_dim // 2) / self.head_dim
        frequency = np.float64(self.rope_base_of(layer)) ** exponent
        if self.rope_factors is not None:
            frequency = frequency / np.asarray(self.rope_factors, np.float64)
        return frequency

    def rope_base_of(self, layer: int) -> float:
        """RoPE's base in one layer."""
        local = self.row.window_rope_base
        return local if local and self.windowed(layer) else self.rope_base

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
        if isinstance(value, bool) or not isinstance(value, accepted) or not value > 0:
            raise self.fail(f"{key} is {value!r}", f"it must be a positive {kind.__name__}")
        return kind(value)

    def require(self, condition: bool, what: str) -> None:
        if not condition:
            raise self.fail(f"contradictory keys: {what}", "convert the model again")

    def config(self) -> LlamaConfig:
        if self.architecture not in ARCHITECTURES:
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
        self.require(rope_dim == head_dim, f"heads of {head_dim}, rope.dimension_count {rope_dim}")
        has_key = f"{self.architecture}.attention.key_length" in self.metadata
        self.require(
            has_key or dim % heads == 0,
            f"embedding_length {dim} over {heads} heads, no attention.key_length",
        )
        config = LlamaConfig(
            architecture=self.architecture,
            layers=self.take("block_count", int),
            dim=dim,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            ffn=self.take("feed_forward_length", int),
            vocab=self.vocab(),
            context=self.take("context_length", int),
            rms_eps=self.take("attention.layer_norm_rms_epsilon", float),
            rope_base=self.take("rope.freq_base", float, 10000.0),
            window=self.window(),
            **self.numbers(dim),
        )
        if self.unused:
            raise self.fail(
                f"unknown keys: {', '.join(sorted(self.unused))}",
                "they may change the model, so it is refused: add them to greta_jax/config.py",
            )
        return config

    def window(self) -> int | None:
        """The sliding window, which Mistral's first models and Gemma have."""
        key = f"{self.architecture}.attention.sliding_window"
        return self.take("attention.sliding_window", int) if key in self.metadata else None

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
        listed = None if tokens is None else len(tokens)
        vocab = self.take("vocab_size", int, listed)
        self.require(listed in (None, vocab), f"vocab_size {vocab}, but {listed} tokens listed")
        return vocab
