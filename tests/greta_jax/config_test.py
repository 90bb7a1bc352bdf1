"""Configuration: every key is used, ignored by name, or refused by name."""

import pytest

from greta_jax.config import LlamaConfig
from greta_jax.errors import ConfigError
from greta_jax.gguf.reader import GgufFile


@pytest.fixture
def keys(tiny_path):
    return dict(GgufFile(tiny_path).metadata)


def refused(keys, *words):
    with pytest.raises(ConfigError) as caught:
        LlamaConfig.from_gguf(keys, "model.gguf")
    message = str(caught.value)
    assert "\n" not in message and "model.gguf" in message
    for word in words:
        assert word in message, message


def test_all_sizes_come_from_the_keys(keys):
    config = LlamaConfig.from_gguf(keys)
    assert config.dimensions == dict(L=3, D=24, N=6, K=2, H=10, F=35, V=97)
    assert config.context == 128
    assert config.rms_eps == pytest.approx(1e-5)


def test_unknown_architecture_is_refused_by_name(keys):
    refused(keys | {"general.architecture": "mamba"}, "mamba", "supported: llama")


@pytest.mark.parametrize(
    "key", ["block_count", "embedding_length", "feed_forward_length", "context_length"]
)
def test_missing_key_is_refused_by_name(keys, key):
    del keys[f"llama.{key}"]
    refused(keys, f"llama.{key}", "missing")


def test_unknown_key_is_refused_by_name(keys):
    refused(keys | {"llama.expert_count": 8}, "llama.expert_count", "unknown keys")


def test_descriptive_keys_are_ignored(keys):
    LlamaConfig.from_gguf(keys | {"general.url": "x", "quantize.imatrix.file": "y"})


@pytest.mark.parametrize("value", [0, -1, True, "3", 2.5, None])
def test_mistyped_key_is_refused(keys, value):
    refused(keys | {"llama.block_count": value}, "llama.block_count")


@pytest.mark.parametrize(
    "change",
    [
        {"llama.attention.head_count_kv": 4},
        {"llama.attention.value_length": 12},
        {"llama.rope.dimension_count": 8},
        {"llama.vocab_size": 96},
        {"llama.attention.key_length": 9, "llama.attention.value_length": 9},
    ],
    ids=lambda c: next(iter(c)),
)
def test_contradictory_keys_are_refused(keys, change):
    refused(keys | change, "contradictory")
