"""One command calibrates the scales that an engine is opened with, and that the judge knows."""

import json

import numpy as np
import pytest

from experiments import b3_20, calibrate_kv, equivalence, flags
from hip_engine.device import open_device
from hip_engine.engine import Engine


def run(*argv):
    return flags.run(calibrate_kv.main, "doc", ["x", *argv], more=(calibrate_kv.SCALES,))


def test_the_engine_opens_with_the_scales_that_were_calibrated(tmp_path, capsys):
    scales = tmp_path / "scales.json"
    assert run("--prompt=p0_short", f"--scales={scales}", "--quiet") == flags.EXIT_PASS
    assert f"{scales}: 128 scales from" in capsys.readouterr().out
    fp8 = {"kv_dtype": "float8_e4m3fnuz", "kv_scale": scales}
    engine = Engine.open(flags.DEFAULT_MODEL, open_device("emulated"), max_context=64, **fp8)
    assert np.isfinite(engine.prefill([4091, 2689])[-1].logits_V).all()
    engine.close()


def test_calibration_looks_at_every_layer(capsys):
    assert run("--layers=0") == flags.EXIT_USAGE
    assert "--layers decides nothing here" in capsys.readouterr().err


FP8 = ("--prompt=p0_short", "--layers=0,1", "--max_tokens=1", "--kv_dtype=float8_e4m3fnuz")


@pytest.mark.parametrize("route", ["manual/valu", "fused/mfma"])
def test_a_cache_with_calibrated_scales_is_judged_by_them(route, tmp_path):
    scales = tmp_path / "scales.json"
    assert run("--prompt=p5_ba", f"--scales={scales}", "--quiet") == flags.EXIT_PASS
    argv = ["b3_20.py", *FP8, f"--route={route}", f"--kv_scale={scales}", f"--out_dir={tmp_path}"]
    assert flags.run(b3_20.main, b3_20.__doc__, argv) == flags.EXIT_PASS
    declared = json.loads((tmp_path / "b3_20_run.json").read_text())["facts"]["engine_precision"]
    found = json.loads(scales.read_text())["scales_L2K"]
    assert declared["kv.v"]["scale_LK"] == [of_layer[1] for of_layer in found]


@pytest.mark.parametrize(
    "main, flag, words",
    [
        (b3_20.main, "--kv_scale=0.3", "no bound is known for scales that round at every use"),
        (b3_20.main, "--kv_scale=nowhere.json", "nowhere.json holds no scales of a KV cache"),
        (b3_20.main, "--kv_scale=-2", "kv_scale is -2.0: use positive"),
        (equivalence.main, "--kv_scale=2", "the floor of the law is measured at scale 1"),
    ],
)
def test_scales_that_cannot_be_judged_are_refused(main, flag, words, tmp_path, capsys):
    argv = ["b3_20.py", *FP8, flag, f"--out_dir={tmp_path}"]
    assert flags.run(main, "Doc.", argv) == flags.EXIT_USAGE
    assert words in capsys.readouterr().err


def test_a_cache_of_another_type_has_no_scales(capsys):
    assert flags.run(b3_20.main, "Doc.", ["b3_20.py", "--kv_scale=2"]) == flags.EXIT_USAGE
    assert "a float16 cache stores numbers as they are" in capsys.readouterr().err
