"""Scales are calibrated by one command and taken by the next."""

import json

from experiments import b3_20, calibrate_kv, flags


def run(main, *argv, more=()):
    return flags.run(main, "doc", ["x", *argv], more=more)


def test_calibrated_scales_pass_b3_20_and_name_their_model(tmp_path, capsys):
    scales = tmp_path / "scales.json"
    argv = ("--prompt=p0_short,p4_sys,p5_ba", f"--scales={scales}", "--quiet")
    assert run(calibrate_kv.main, *argv, more=(calibrate_kv.SCALES,)) == flags.EXIT_PASS
    assert "scales from" in capsys.readouterr().out
    told = json.loads(scales.read_text())
    argv = ("--prompt=p0_short", "--layers=0", "--max_tokens=1", f"--out_dir={tmp_path}", "--quiet")
    argv += ("--kv_dtype=float8_e4m3fnuz", f"--kv_scale={scales}")
    assert run(b3_20.main, *argv) == flags.EXIT_PASS
    scales.write_text(json.dumps(told | {"model_sha256": "0" * 64}))
    assert run(b3_20.main, *argv) == flags.EXIT_USAGE
    assert "was calibrated on model 000000000000" in capsys.readouterr().err


def test_calibration_looks_at_every_layer(capsys):
    assert run(calibrate_kv.main, "--layers=0", more=(calibrate_kv.SCALES,)) == flags.EXIT_USAGE
    assert "--layers decides nothing here" in capsys.readouterr().err
