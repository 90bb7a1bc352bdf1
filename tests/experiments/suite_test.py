"""Suite files: what a good one makes, and that a bad one is refused by line."""

from pathlib import Path

import pytest

from experiments import nightly
from experiments.batch import options, suite
from experiments.batch.errors import SuiteError

HEAD = """name: demo
models: {tiny: model.gguf}
prompts: [p0_short, p4_sys]
routes: [manual/valu, fused/mfma]
kv_dtypes: [float16]
"""


@pytest.fixture
def load(tmp_path):
    (tmp_path / "model.gguf").touch()

    def loaded(text):
        path = tmp_path / "suite.yaml"
        path.write_text(text)
        return suite.load(path, options.CHECKS)

    return loaded


def test_a_suite_is_the_product_of_its_axes_in_the_files_order(load):
    made = load(HEAD + "experiments: [b3_20]\n")
    assert [cell.name for cell in made.cells] == [
        f"b3_20 tiny {prompt} {route} float16"
        for prompt in ("p0_short", "p4_sys")
        for route in ("manual/valu", "fused/mfma")
    ]
    asked = made.cells[0].arguments()
    assert asked[1:] == ["--prompt=p0_short", "--route=manual/valu", "--kv_dtype=float16"]
    assert asked[0].endswith("model.gguf")


def test_an_entry_can_be_narrower_and_have_flags_and_limits_of_its_own(load):
    entry = "{name: b3_20, label: deep, prompts: [p4_sys], flags: {layers: all}, timeout_s: 9}"
    made = load(f"{HEAD}timeout_s: 60\nmemory_mb: 100\nexperiments:\n  - b3_20\n  - {entry}\n")
    deep = [cell for cell in made.cells if cell.label == "deep"]
    assert len(made.cells) == 6 and len(deep) == 2
    assert deep[0].flags == (("layers", "all"),)
    assert (deep[0].timeout_s, deep[0].memory_mb, made.cells[0].timeout_s) == (9, 100, 60)


def test_exclusions_take_cells_out(load):
    made = load(HEAD + "experiments: [b3_20]\nexclude: [{route: fused/mfma, prompt: p4_sys}]\n")
    assert len(made.cells) == 3


def test_once_needs_no_axes(load):
    made = load("once: [{name: b3_20, flags: {layers: '0', kv_dtype: float32}}]\n")
    assert made.name == "suite"
    assert made.cells[0].arguments() == ["--layers=0", "--kv_dtype=float32"]


def test_keys_do_not_depend_on_limits_or_on_where_the_model_lies(load, tmp_path):
    before = load(HEAD + "experiments: [b3_20]\n").cells
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.gguf").touch()
    moved = HEAD.replace("model.gguf", "other/model.gguf")
    after = load(moved + "timeout_s: 5\nexperiments: [b3_20]\n").cells
    assert [cell.key for cell in before] == [cell.key for cell in after]
    assert len({cell.key for cell in before}) == len(before)


REFUSED = {
    "an unknown key": ("promts: [p0_short]\n", 1, "unknown key 'promts': did you mean 'prompts'"),
    "a key given twice": (HEAD + "name: again\n", 6, "given twice, first in line 1"),
    "no experiments": (HEAD, 1, "no experiments"),
    "an empty file": ("", 1, "empty"),
    "a list for a mapping": ("- b3_20\n", 1, "expected `key: value`"),
    "a missing model": (HEAD.replace("model.gguf", "x.gguf"), 2, "no file x.gguf"),
    "an unknown prompt": (HEAD.replace("p4_sys", "p9"), 3, "unknown prompt 'p9'"),
    "a prompt listed twice": (HEAD.replace("p4_sys", "p0_short"), 3, "listed twice"),
    "an unknown route": (HEAD.replace("fused/mfma", "fast/mfma"), 4, "unknown route 'fast/mfma'"),
    "an unknown kv dtype": (HEAD.replace("float16", "float17"), 5, "float17"),
    "an unknown experiment": (HEAD + "experiments: [b3_99]\n", 6, "no experiment 'b3_99'"),
    "an unknown flag": (
        HEAD + "experiments:\n  - name: b3_20\n    flags: {layer: all}\n",
        8,
        "--layer is not a flag of b3_20",
    ),
    "an unknown flag of its own": (
        "once:\n  - name: determinism\n    flags: {runs: 3, run: 3}\n",
        3,
        "--run is not a flag of determinism",
    ),
    "a bad value of a flag of its own": (
        "once:\n  - name: determinism\n    flags: {runs: many}\n",
        3,
        "runs",
    ),
    "a program that is no cell": ("once: [nightly]\n", 1, "nightly cannot be a cell"),
    "a bad value of a flag": (
        HEAD + "experiments:\n  - name: b3_20\n    flags:\n      max_tokens: two\n",
        9,
        "max_tokens",
    ),
    "a flag that the suite sets": (
        HEAD + "experiments:\n  - name: b3_20\n    flags: {route: fused/valu}\n",
        8,
        "set by the suite itself",
    ),
    "a duplicate cell": (
        HEAD + "experiments:\n  - b3_20\n  - {name: b3_20, prompts: [p4_sys]}\n",
        8,
        "duplicate cell b3_20 tiny p4_sys manual/valu float16, first made by line 7",
    ),
    "an impossible combination": (
        HEAD.replace("[float16]", "[float16, float32]") + "experiments: [b3_20]\n",
        6,
        "fused/mfma float32 is impossible",
    ),
    "an exclusion that matches nothing": (
        HEAD + "experiments: [b3_20]\nexclude:\n  - {experiment: b3_21}\n",
        8,
        "matches no cell",
    ),
    "an exclusion of everything": (HEAD + "exclude:\n  - {}\nonce: [b3_20]\n", 7, "everything"),
    "a limit that is no number": (HEAD + "timeout_s: soon\nonce: [b3_20]\n", 6, "above 0"),
    "a limit of zero": (HEAD + "memory_mb: 0\nonce: [b3_20]\n", 6, "above 0"),
    "a narrower axis beyond the suite's": (
        HEAD + "experiments:\n  - {name: b3_20, prompts: [p5_ba]}\n",
        7,
        "not among the suite's prompts",
    ),
    "broken YAML": (HEAD + "experiments: [b3_20\n", 7, "expected"),
    "experiments without axes": ("experiments: [b3_20]\n", 1, "experiments need models"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_suite_is_refused_by_line(what, load):
    text, line, why = REFUSED[what]
    with pytest.raises(SuiteError) as refusal:
        load(text)
    assert f"suite.yaml:{line}: " in str(refusal.value) and why in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["nightly", "quick"])
def test_the_shipped_suites_are_good(name, capsys):
    path = Path(nightly.__file__).parent / "suites" / f"{name}.yaml"
    assert nightly.main(["nightly.py", f"--suite={path}", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 2


BAD_FLAGS = ["", "--suite=nowhere.yaml", "--suite=a --jobs=0", "--suit=a", "x --suite=a"]


@pytest.mark.parametrize("arguments", BAD_FLAGS)
def test_bad_flags_are_one_line_and_exit_2(arguments, capsys):
    assert nightly.main(["nightly.py", *arguments.split()]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_help_has_examples_and_every_flag(capsys):
    assert nightly.main(["nightly.py", "--help"]) == 0
    text = capsys.readouterr().out
    assert "Examples:" in text and "--executor" in text and "Exit codes:" in text
