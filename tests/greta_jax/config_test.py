"""Configuration: every key is used, ignored by name, or refused by name."""

import numpy as np
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
    assert config.dimensions == dict(L=3, D=24, N=6, K=2, H=10, F=35, V=97, E=0)
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
    refused(keys | {"llama.expert_shared_count": 8}, "llama.expert_shared_count", "unknown keys")


def test_descriptive_keys_are_ignored(keys):
    LlamaConfig.from_gguf(keys | {"general.url": "x", "quantize.imatrix.file": "y"})


@pytest.mark.parametrize("value", [0, -1, True, "3", 2.5, None, float("inf"), [4]])
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
        {"llama.expert_count": 4, "llama.expert_used_count": 5},
        {"llama.expert_count": 4},
        {"llama.expert_used_count": 2},
        {"llama.expert_count": 4, "llama.expert_used_count": 2, "llama.expert_gating_func": 2},
        {"llama.attention.sliding_window_pattern": 1},
        {"llama.attention.sliding_window_pattern": np.array([True, False, False])},
        {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.yarn_ext_factor": 0.5},
        {"llama.rope.scaling.factor": 4.0, "llama.rope.scaling.yarn_attn_factor": 1.5},
    ],
    ids=lambda c: ",".join(c),
)
def test_contradictory_keys_are_refused(keys, change):
    refused(keys | change, "contradictory")


@pytest.mark.parametrize("value", ["dynamic", 3, ["linear"]], ids=str)
def test_unknown_rope_scaling_is_refused_by_name(keys, value):
    refused(keys | {"llama.rope.scaling.type": value}, "rope.scaling.type", "linear, yarn")


def test_a_scaling_that_scales_nothing_is_none(keys):
    none = {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 8.0}
    assert LlamaConfig.from_gguf(keys | none).rope_scaling is None
    old = LlamaConfig.from_gguf(keys | {"llama.rope.scale_linear": 4.0})
    assert old.rope_scaling.factor == 4.0


def test_windows_follow_the_pattern_of_the_file(keys):
    pattern = {"llama.attention.sliding_window": 7}
    pattern |= {"llama.attention.sliding_window_pattern": np.array([True, False, True])}
    config = LlamaConfig.from_gguf(keys | pattern)
    assert [config.windowed(layer) for layer in range(3)] == [True, False, True]
    assert LlamaConfig.from_gguf(keys | {"llama.attention.sliding_window": 0}).window is None
