"""Streaming: the bits of prefill, killed and resumed, with decoded weights never kept."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from greta_jax.errors import OracleError, PrecisionError
from greta_jax.gguf import synthetic
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from greta_jax.stream import stream
from greta_jax.taps import Taps

ROOT = Path(__file__).parents[2]
TAPS = Taps.everything((0, 2))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small.gguf"
    synthetic.write(path, synthetic.SHAPES["small"], report=None)
    return path


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(0).integers(0, 320, 37)


def same(a, b) -> bool:
    return a.taps.keys() == b.taps.keys() and all(
        np.array_equal(a.taps[key], b.taps[key]) for key in a.taps
    )


@pytest.mark.parametrize("policy", [Policy.fp64, Policy.fp32])
def test_stream_has_the_bits_of_prefill(path, ids, policy):
    resident = Oracle.open(path, policy(), resident=True).prefill(ids, TAPS)
    streaming = Oracle.open(path, policy(), resident=False)
    streamed = stream(streaming, ids, TAPS)
    assert np.array_equal(resident.logits_TV, streamed.logits_TV)
    assert same(resident, streamed)
    assert streaming.weights._kept == {}


KILLED = """
import os, signal, sys
import numpy as np
from experiments import flags
flags.configure_jax()
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from greta_jax.stream import stream
from greta_jax.taps import Taps

def killed(progress):
    if progress.layers_done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

path, folder = sys.argv[1:]
ids = np.random.default_rng(0).integers(0, 320, 37)
oracle = Oracle.open(path, Policy.fp64(), resident=False)
stream(oracle, ids, Taps.everything((0, 2)), checkpoint=folder, report=killed)
"""


def test_a_killed_run_resumes_from_the_last_finished_layer_with_the_same_bits(path, ids, tmp_path):
    """Killed by the system, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(tmp_path)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    oracle, seen = Oracle.open(path, Policy.fp64(), resident=False), []
    resumed = stream(oracle, ids, TAPS, checkpoint=tmp_path, report=seen.append)
    whole = stream(oracle, ids, TAPS)
    assert [p.layers_done for p in seen] == [3]
    assert np.array_equal(whole.logits_TV, resumed.logits_TV) and same(whole, resumed)
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_of_another_question_is_refused(path, ids, tmp_path):
    oracle = Oracle.open(path, Policy.fp64())

    def killed(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(oracle, ids, checkpoint=tmp_path, report=killed)
    with pytest.raises(OracleError, match="another token_ids"):
        stream(oracle, ids[:-1], checkpoint=tmp_path)
    with pytest.raises(OracleError, match="another policy"):
        stream(oracle.with_policy(Policy.fp32()), ids, checkpoint=tmp_path)
    (tmp_path / "residual.safetensors").write_bytes(b"\0" * 10)
    with pytest.raises(OracleError, match="cannot be read"):
        stream(oracle, ids, checkpoint=tmp_path)


def test_progress_counts_layers_and_estimates(path, ids):
    seen = []
    stream(Oracle.open(path, Policy.fp32()), ids[:3], report=seen.append)
    assert [p.layers_done for p in seen] == [1, 2, 3]
    assert seen[-1].remaining_s == 0 and "layer 3/3" in str(seen[-1])


def test_checkpoints_of_bf16_are_refused(path, ids, tmp_path):
    oracle = Oracle.open(path, Policy.uniform("bfloat16"))
    with pytest.raises(PrecisionError, match="bfloat16"):
        stream(oracle, ids, checkpoint=tmp_path)


def test_synthetic_weights_are_centred_and_of_unit_row_norm(path):
    oracle = Oracle.open(path, Policy.fp64())
    for name, layer in (("q_NHD", 0), ("down_DF", 0), ("unembed_VD", -1)):
        weight = np.asarray(oracle.weights.load(name, layer))
        norm = np.sqrt(np.mean(weight**2) * weight.shape[-1])
        assert 0.9 < norm < 1.1
        assert abs(weight.mean()) < 0.05 * weight.std()


def test_any_text_has_ids_in_a_synthetic_model(path):
    tokenizer = Oracle.open(path, Policy.fp64()).tokenizer
    text = "Hola  señor <unused 3>\n"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and max(ids) < 257
