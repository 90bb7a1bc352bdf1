"""Scales of an fp8 cache: calibrated, kept in a file, refused for another model, and saturation."""

import json

import numpy as np
import pytest

from hip_engine.calibration import calibrate
from hip_engine.engine import Engine
from hip_engine.errors import ScalesRefused
from hip_engine.kv_scales import KvScales
from hip_engine.kv_types import FP8_LARGEST
from hip_engine.taps import Taps
from hip_engine.weights import open_model

FP8 = "float8_e4m3fnuz"
PROMPTS = ([5, 6, 7, 80, 81], [99, 3])


@pytest.fixture(scope="module")
def calibrated(quantised_path, device):
    return calibrate(quantised_path, device, PROMPTS)


@pytest.fixture
def path(calibrated, tmp_path):
    calibrated.write(tmp_path / "scales.json")
    return tmp_path / "scales.json"


def cached(path, device, scale):
    """(computed, read back from the cache, scales) of K and of V in every layer, LSKH and L1K1."""
    engine = Engine.open(path, device, kv_dtype=FP8, kv_scale=scale)
    scales_L2K = engine._cache.scales_L2K
    steps = engine.prefill(PROMPTS[0], Taps.of(["attn.k_rope", "kv.k", "attn.v", "kv.v"]))
    layers = range(engine.config.L)
    engine.close()
    for which, (new, slab) in enumerate((("attn.k_rope", "kv.k"), ("attn.v", "kv.v"))):
        computed = [[step.taps[layer, new][0] for step in steps] for layer in layers]
        kept = [steps[-1].taps[layer, slab] for layer in layers]
        yield np.array(computed), np.array(kept), scales_L2K[:, which, None, :, None]


def test_the_largest_number_of_every_head_comes_to_lie_in_the_last_octave_of_fp8(
    quantised_path, device, calibrated
):
    assert calibrated.tokens == 7
    engine = Engine.open(quantised_path, device, kv_dtype="float32")
    largest = np.zeros_like(calibrated.scales_L2K)
    for prompt in PROMPTS:
        engine.reset()
        engine.prefill(prompt)
        for which, layer in np.ndindex(2, engine.config.L):
            slab_SKH = engine._cache.live_slab("kv"[which], layer, 0, len(prompt))
            largest[layer, which] = np.maximum(largest[layer, which], np.abs(slab_SKH).max((0, 2)))
    engine.close()
    stored = largest / calibrated.scales_L2K
    assert (stored <= FP8_LARGEST).all() and (stored > FP8_LARGEST / 2).all()
    assert (np.frexp(calibrated.scales_L2K)[0] == 0.5).all(), "powers of two round nowhere"
    assert len(np.unique(calibrated.scales_L2K)) > 1


def test_calibrated_scales_round_and_do_not_saturate(quantised_path, device, path):
    for computed, kept, scale in cached(quantised_path, device, path):
        assert (np.abs(kept - computed) <= 2.0**-4 * np.abs(computed) + 2.0**-11 * scale).all()


def test_what_a_scale_is_too_small_for_saturates(quantised_path, device, calibrated):
    for computed, kept, scale in cached(quantised_path, device, calibrated.scales_L2K / 10):
        limit = scale * np.float32(FP8_LARGEST)
        over = np.abs(computed) > limit
        assert 0 < np.count_nonzero(over) < over.size
        ref = np.copysign(np.broadcast_to(limit, over.shape), computed)
        np.testing.assert_array_equal(kept[over], ref[over])


def test_scales_are_read_back_as_they_were_written(quantised_path, calibrated, path):
    found = KvScales.read(path, open_model(quantised_path))
    np.testing.assert_array_equal(found.scales_L2K, calibrated.scales_L2K)
    assert (found.model_sha256, found.tokens) == (calibrated.model_sha256, 7)


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


DAMAGES = {
    "no_file": (lambda path: path.unlink(), "holds no scales.*FileNotFound"),
    "no_json": (lambda path: path.write_text("{"), "holds no scales.*JSONDecodeError"),
    "no_field": (lambda path: path.write_text("{}"), "holds no scales.*model_sha256"),
    "another_model": (lambda path: change(path, model_sha256="f" * 64), "on model ffffffffffff"),
    "shape": (lambda path: change(path, scales_L2K=[1.0]), r"takes \(2, 2, 2\) positive"),
    "zero": (lambda path: change(path, scales_L2K=[[[0.0, 1], [1, 1]]] * 2), "positive numbers"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_file_that_is_not_the_models_is_refused(quantised_path, device, path, case):
    damage, message = DAMAGES[case]
    damage(path)
    with pytest.raises(ScalesRefused, match=message):
        Engine.open(quantised_path, device, kv_dtype=FP8, kv_scale=path)


def test_scales_of_another_shape_and_prompts_without_tokens_are_refused(quantised_path, device):
    with pytest.raises(ScalesRefused, match=r"shape \(3,\): use one number or \(2, 2, 2\)"):
        Engine.open(quantised_path, device, kv_dtype=FP8, kv_scale=np.ones(3, np.float32))
    with pytest.raises(ScalesRefused, match="no tokens"):
        calibrate(quantised_path, device, [[]])
