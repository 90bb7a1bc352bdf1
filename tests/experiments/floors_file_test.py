"""Saved floors: what may be compared, and what is said of floors that changed."""

import json

import pytest

from experiments.align import floors_file
from experiments.align.errors import AlignError, FloorsFileError, FloorsOfAnother
from experiments.align.floors_file import Floors

IDENTITY = {"model_sha256": "m", "engine_precision": {"attn.out": {"store": "float32"}}}
PLACE = (3, "attn.out")


def floors_of(floor, prompt="p", **identity):
    return Floors({**IDENTITY, **identity}, {prompt: "text"}, {prompt: {PLACE: floor}})


@pytest.fixture
def path(tmp_path):
    return floors_file.write(tmp_path / "floors.json", floors_of(1.25e-6))


def test_what_was_saved_is_read_back_and_is_no_change(path):
    assert floors_file.read(path) == floors_of(1.25e-6)
    assert json.loads(path.read_text())["schema"] == floors_file.SCHEMA
    assert not floors_file.changes(floors_file.read(path), floors_of(1.25e-6))


def test_a_looser_floor_is_told_from_a_tighter_one_and_a_new_one(path):
    saved = floors_file.read(path)
    [looser] = floors_file.changes(saved, floors_of(1.26e-6))
    assert looser.looser and "attn.out of layer 3 is looser: 1.26e-06" in looser.sentence()
    [tighter] = floors_file.changes(saved, floors_of(1.24e-6))
    assert not tighter.looser and "tighter" in tighter.sentence()
    more = Floors(IDENTITY, {"p": "text"}, {"p": {PLACE: 1.25e-6, (4, "attn.out"): 1.0}})
    [new] = floors_file.changes(saved, more)
    assert new.saved is None and not new.looser


def test_a_difference_beyond_the_digits_kept_is_none(path):
    assert not floors_file.changes(floors_file.read(path), floors_of(1.25e-6 * (1 + 1e-15)))


@pytest.mark.parametrize(
    "change, why",
    [
        (dict(model_sha256="n"), "another model_sha256"),
        (dict(engine_precision={}), "another engine_precision"),
    ],
)
def test_floors_of_another_model_or_precision_are_refused(path, change, why):
    with pytest.raises(FloorsOfAnother, match=why):
        floors_file.require_comparable(
            floors_file.read(path), IDENTITY | change, {"p": "text"}, path
        )


@pytest.mark.parametrize(
    "prompts, why", [({"q": "text"}, "no floors of prompt q"), ({"p": "other"}, "another text")]
)
def test_floors_of_another_prompt_are_refused(path, prompts, why):
    with pytest.raises(FloorsOfAnother, match=why):
        floors_file.require_comparable(floors_file.read(path), IDENTITY, prompts, path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 99}', '{"schema": 1, "floors": 3}'])
def test_a_file_that_holds_no_floors_is_refused_by_name(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(FloorsFileError, match="broken.json"):
        floors_file.read(path)
    with pytest.raises(AlignError, match="absent.json"):
        floors_file.read(tmp_path / "absent.json")
