"""One command calibrates the scales that an engine is opened with."""

import numpy as np

from experiments import calibrate_kv, flags
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
