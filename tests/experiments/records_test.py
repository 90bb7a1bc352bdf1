"""Result files: readable up to a cut, whole or absent, and never a number JSON does not have."""

import os

import numpy as np
import pytest

from experiments.align import records
from experiments.align.errors import RecordError


def test_records_survive_a_cut(tmp_path):
    path = tmp_path / "run.jsonl"
    with records.JsonLines(path) as lines:
        lines.append({"event": "config", "layers": (0, np.int64(31))})
        lines.append({"event": "site", "mae": np.float32(0.5), "max": np.inf})
    whole = path.read_bytes()
    assert [r["event"] for r in records.read(path)] == ["config", "site"]
    path.write_bytes(whole[:-5])
    assert list(records.read(path)) == [{"event": "config", "layers": [0, 31]}]


def test_a_record_is_on_disk_before_the_next_one(tmp_path):
    lines = records.JsonLines(tmp_path / "run.jsonl")
    lines.append({"event": "config"})
    assert list(records.read(lines.path)) == [{"event": "config"}]
    lines.__exit__()


def test_values_json_lacks_are_words(tmp_path):
    path = tmp_path / "run.jsonl"
    with records.JsonLines(path) as lines:
        lines.append({"ratio": float("inf"), "mae": np.array([np.nan, 1.0])})
    assert list(records.read(path)) == [{"ratio": "inf", "mae": ["nan", 1.0]}]


def test_a_whole_file_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "summary.txt"
    records.write_whole(path, "old")
    records.write_whole(path, "new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["summary.txt"]


def test_a_directory_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="choose another with --out_dir"):
        records.writable_dir(tmp_path / "file" / "below")
