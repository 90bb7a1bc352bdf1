"""Heads and ffn over four devices, of one process and of two: the same forward within its floor."""

import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from greta_jax.bounds import bound
from greta_jax.errors import ConfigError
from greta_jax.graph import INPUTS
from greta_jax.model import Oracle
from greta_jax.precision import Policy, unit_roundoff
from greta_jax.replay import replay
from greta_jax.sharding import Sharded
from greta_jax.taps import LAYER_SITES, SITES, Taps
from tests.tiny_gguf import Shape, write_llama

ROOT = Path(__file__).parents[2]
SHAPE = Shape(2, 32, 8, 4, 8, 48, 97)
DOUBLE = {"store": "float64", "accumulate": "float64"}
TOKENS = 21


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("sharded") / "model.gguf", SHAPE)


def run(path, out, processes: int, devices: int) -> dict[str, np.ndarray]:
    """What process 0 of so many saw."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.sharded_worker", str(path), str(out)]
    started = [
        subprocess.Popen([*command, str(index), *map(str, (processes, devices, port))], cwd=ROOT)
        for index in range(processes)
    ]
    assert [one.wait(300) for one in started] == [0] * processes
    with np.load(out) as file:
        return {name: file[name] for name in file.files}


def inputs_of(site: str, layer: int, taps: dict) -> dict:
    """What the op read in the run that is judged."""
    inputs = {}
    for name in INPUTS[site]:
        if name == "positions":
            inputs[name] = np.arange(TOKENS)
        elif name == "resid.in":
            inputs[name] = taps[f"{layer - 1}|resid.out" if layer else "-1|embed"]
        else:
            inputs[name] = taps[f"{layer}|{name}"]
    return inputs


def worst(oracle: Oracle, taps: dict) -> float:
    """Largest local error of any op over the floor of two fp64 evaluations."""
    found = []
    for layer in range(oracle.config.layers):
        for site in LAYER_SITES:
            inputs = inputs_of(site, layer, taps)
            ref, got = replay(oracle, site, layer, inputs), taps[f"{layer}|{site}"]
            floor = 2 * bound(oracle, site, layer, inputs, DOUBLE)
            seen = np.isfinite(ref)
            assert np.array_equal(seen, np.isfinite(got)), site
            found.append(np.max(np.abs(got[seen] - ref[seen]) / floor[seen]))
    return float(max(found))


@pytest.mark.parametrize("processes, devices", [(1, 4), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_a_sharded_forward_is_the_same_within_the_floor(path, tmp_path, processes, devices):
    got = run(path, tmp_path / "out.npz", processes, devices)
    oracle = Oracle.open(path, Policy.fp64())
    ids = np.random.default_rng(0).integers(0, oracle.config.vocab, TOKENS)
    step = oracle.prefill(ids, Taps(SITES))
    assert {name for name in got if "|" in name} == {f"{at}|{site}" for at, site in step.taps}
    assert all(got[f"{at}|{site}"].shape == value.shape for (at, site), value in step.taps.items())
    assert worst(oracle, got) <= 1
    assert np.array_equal(got["streamed"], got["-1|logits"])
    last = oracle.decode(step.cache, 5).logits_TV
    c = oracle.config
    roundings = c.layers * (4 * c.dim + c.ffn + c.heads * c.head_dim + TOKENS)
    floor = roundings * unit_roundoff("float64") * np.abs(last).max()
    assert np.abs(got["decoded"] - last).max() <= floor
    assert got["devices_of_cache"] == [4] and got["rows_a_device"] == [1]


def test_a_head_in_another_s_place_is_above_the_floor(path):
    oracle = Oracle.open(path, Policy.fp64())
    step = oracle.prefill(np.arange(TOKENS), Taps(SITES))
    taps = {f"{layer}|{site}": value for (layer, site), value in step.taps.items()}
    assert worst(oracle, taps) <= 1
    taps["1|attn.out"] = np.roll(taps["1|attn.out"], 1, axis=1)
    assert worst(oracle, taps) > 1


def test_devices_that_do_not_divide_the_heads_are_refused(tiny_path):
    config = Oracle.open(tiny_path, Policy.fp64()).config
    with pytest.raises(ConfigError, match="4 devices do not divide the model's kv heads, 2"):
        Sharded(config, jax.devices()[:1] * 4)
