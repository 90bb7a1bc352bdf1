"""Nightly runs: nothing that happens to one cell, one run or one disk loses what was finished."""

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from experiments import nightly
from experiments.align.errors import RecordError
from experiments.batch import outputs, store
from experiments.batch.cell import Cell, Result
from experiments.batch.errors import HistoryError
from experiments.batch.history import Drift, History, Point, drift_of
from experiments.report import html, pages, run_file
from tests.experiments import fake_cell

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, cells that are fakes, and a fixed commit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Cell, "command", fake_cell.command)
    monkeypatch.setattr(nightly, "commit", lambda: "commit-a")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return tmp_path


def write_suite(folder: Path, *labels: str, limits: str = "") -> Path:
    path = folder / "suite.yaml"
    entries = [f"  - {{name: b3_20, label: {label}}}\n" for label in labels]
    path.write_text("name: fake\n" + limits + "once:\n" + "".join(entries))
    return path


def run(folder: Path, *labels: str, limits: str = "", flags: tuple[str, ...] = ()) -> int:
    suite = write_suite(folder, *labels, limits=limits)
    argv = ["nightly.py", f"--suite={suite}", f"--out_dir={folder / 'out'}", "--quiet", *flags]
    return nightly.main(argv)


def results(folder: Path) -> dict[str, Result]:
    return {result.cell.label: result for result in store.read(folder / "out")}


def test_one_bad_cell_never_stops_the_rest(place):
    labels = ("crash", "fail", "inconclusive", "refused", "pass")
    assert run(place, *labels) == 1
    found = results(place)
    assert {label: result.status for label, result in found.items()} == dict(
        zip(labels, labels, strict=True)
    )
    assert any("a bug of the harness" in reason for reason in found["crash"].reasons)
    assert found["pass"].margins and found["pass"].peak_rss_mb >= 0


@pytest.mark.parametrize(
    "labels, code",
    [
        (("pass",), 0),
        (("pass", "inconclusive"), 3),
        (("inconclusive", "refused"), 2),
        (("refused", "fail"), 1),
        (("fail", "oracle"), 4),
        (("crash",), 3),
    ],
)
def test_the_worst_cell_decides_the_exit_code(place, labels, code):
    assert run(place, *labels) == code


def test_a_cell_beyond_its_time_or_memory_is_ended(place):
    started = time.monotonic()
    limits = "timeout_s: 4\nmemory_mb: 200\n"
    assert run(place, "hang", "memory", "pass", limits=limits, flags=("--jobs=2",)) == 3
    found = results(place)
    assert found["hang"].status == "timeout" and "4 s" in found["hang"].reasons[0]
    assert found["memory"].status == "memory" and found["memory"].peak_rss_mb > 200
    assert found["pass"].status == "pass"
    assert time.monotonic() - started < 60


def test_finished_cells_are_not_run_again_at_the_same_commit(place, monkeypatch):
    assert run(place, "pass") == 0
    assert run(place, "pass", "inconclusive") == 3
    lines = (place / "out" / store.RESULTS).read_text().splitlines()
    assert len(lines) == 2
    assert run(place, "pass", flags=("--fresh",)) == 0
    monkeypatch.setattr(nightly, "commit", lambda: "commit-b")
    assert run(place, "pass") == 0
    assert len((place / "out" / store.RESULTS).read_text().splitlines()) == 4


def start(folder: Path, *labels: str, flags: tuple[str, ...] = ()) -> subprocess.Popen:
    suite = write_suite(folder, *labels)
    # A shell's background job ignores Ctrl-C, and so would what it starts.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "tests.experiments.fake_cell"]
    command += [f"--suite={suite}", f"--out_dir={folder / 'out'}", *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_for_results(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(store.read(folder / "out")) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children_in(folder: Path) -> list[str]:
    """Command lines of living processes that work for this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


def test_a_killed_run_goes_on_where_it_was(place, monkeypatch):
    process = start(place, "pass", "slow", "hang")
    wait_for_results(place, 2)
    monkeypatch.setattr(nightly, "commit", lambda: results(place)["pass"].commit)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while children_in(place):
        assert time.monotonic() < deadline, "a cell outlived its run"
        time.sleep(0.05)
    before = (place / "out" / store.RESULTS).read_text()
    assert "| pass | pass |" in (place / "out" / "nightly.md").read_text()
    assert run(place, "pass", "slow", "hang", limits="timeout_s: 1\n") == 3
    after = (place / "out" / store.RESULTS).read_text()
    assert after.startswith(before) and len(after.splitlines()) == 3


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_a_readable_result(place, how):
    process = start(place, "pass", "hang")
    wait_for_results(place, 1)
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert b"not finished: hang" in out and b"interrupted" in out
    assert b"Traceback" not in err and b"\x1b" not in out + err
    assert "| hang | not finished |" in (place / "out" / "nightly.md").read_text()
    assert "<h1>INCONCLUSIVE</h1>" in (place / "out" / "nightly.html").read_text()
    assert children_in(place) == []


def test_a_torn_line_costs_only_itself(place):
    assert run(place, "pass", "fail") == 1
    path = place / "out" / store.RESULTS
    path.write_bytes(path.read_bytes()[:-40])
    assert run(place, "pass", "fail", "inconclusive") == 1
    assert set(results(place)) == {"pass", "fail", "inconclusive"}
    statuses = [result.status for result in store.read(place / "out")]
    assert statuses == ["pass", "fail", "inconclusive"]


def test_a_full_disk_loses_nothing_that_was_finished(place, monkeypatch, capsys):
    assert run(place, "pass") == 0
    kept = (place / "out" / store.RESULTS).read_bytes()

    def full(folder, result):
        raise RecordError(f"cannot write {folder / store.RESULTS}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "append", full)
        assert run(place, "pass", "slow", "inconclusive") == 3
    shown = capsys.readouterr().out
    assert "2 of 3 cells" in shown
    assert (place / "out" / store.RESULTS).read_bytes() == kept
    assert run(place, "pass", "slow", "inconclusive") == 3
    assert set(results(place)) == {"pass", "slow", "inconclusive"}


def test_a_device_that_is_really_full_is_named(tmp_path):
    (tmp_path / store.RESULTS).symlink_to("/dev/full")
    with pytest.raises(RecordError, match="No space left on device"):
        store.append(tmp_path, made_up_result("commit", "2026-01-01", 0.5))


def test_a_result_that_could_not_be_saved_is_no_success(place, monkeypatch):
    def full(folder, result):
        raise RecordError("cannot write: No space left on device")

    monkeypatch.setattr(store, "append", full)
    assert run(place, "pass") == 2


def test_two_runs_in_one_folder_are_refused_not_mixed(place, capsys):
    (place / "out").mkdir()
    with store.locked(place / "out"):
        assert run(place, "pass") == 2
    assert "another run writes to" in capsys.readouterr().err


def made_up_result(commit: str, at: str, ratio: float, label: str = "pass") -> Result:
    cell = Cell("b3_20", label)
    margins = ((0, "attn.out", ratio), (1, "attn.out", 0.25))
    return Result(cell, "pass", 0, 1.0, 10.0, (), margins, commit, at, "folder")


def add_many(path: str, who: int) -> None:
    for n in range(20):
        History(Path(path)).add("suite", [made_up_result(f"c{n}", f"{who}-{n:02}", 0.5)])


def test_two_runs_on_one_history_lose_nothing(tmp_path):
    path = tmp_path / "history.sqlite"
    context = multiprocessing.get_context("spawn")
    runs = [context.Process(target=add_many, args=(str(path), who)) for who in range(2)]
    for process in runs:
        process.start()
    for process in runs:
        process.join(60)
        assert process.exitcode == 0
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM results").fetchone() == (40,)
    assert connection.execute("SELECT count(*) FROM margins").fetchone() == (80,)
    connection.close()


def test_results_that_the_history_missed_are_added_by_the_next_run(place):
    history = place / "history.sqlite"
    history.write_text("this is no database, but something long enough to be taken for one" * 20)
    flags = (f"--history={history}",)
    assert run(place, "pass", flags=flags) == 0
    history.unlink()
    assert run(place, "pass", flags=flags) == 0
    assert len(History(history).series(results(place)["pass"].cell.key)) == len(
        results(place)["pass"].margins
    )


def test_a_history_of_another_version_is_left_alone(tmp_path):
    path = tmp_path / "history.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(HistoryError, match="version 7"):
        History(path).add("suite", [made_up_result("c", "2026", 0.5)])


def points(*ratios: float) -> list[Point]:
    return [Point(f"night {n}", f"commit {n}", ratio) for n, ratio in enumerate(ratios)]


@pytest.mark.parametrize(
    "ratios, octaves, found",
    [
        ((0.1,), 1, None),
        ((0.1, 0.1, 0.1), 1, None),
        ((0.1, 0.2), 1, None),
        ((0.1, 0.21), 1, (0.1, 1)),
        ((0.1, 0.1, 0.1, 0.3, 0.3), 1, (0.1, 3)),
        ((0.1, 0.3, 0.1, 0.1, 0.5), 1, (0.2, 4)),
        ((0.1, 0.1, 0.9, 0.1), 1, None),
        ((0.1, 0.1, 0.9), 4, None),
        ((0.0, 0.0, 0.01), 1, (0.0, 2)),
    ],
)
def test_a_drift_is_a_growth_that_stays(ratios, octaves, found):
    assert drift_of(points(*ratios), octaves) == (found and pytest.approx(found))


def test_a_drift_is_flagged_before_it_fails_and_since_which_commit(place, monkeypatch, capsys):
    for commit, scale in (("a", 1), ("b", 1), ("c", 4), ("d", 4)):
        (place / "scale.json").write_text(str(scale * 0.1))
        monkeypatch.setattr(nightly, "commit", lambda commit=commit: f"commit-{commit}")
        assert run(place, "scaled") == 0
    assert "drift" not in capsys.readouterr().out
    run_page = run_file.read(place / "out" / "nightly_run.json")
    drifts = run_page.more["drifts"]
    assert drifts and {d["since"] for d in drifts} == {"commit-c"}
    assert {d["last_good"] for d in drifts} == {"commit-b"} and drifts[0]["nights"] == 2
    assert all(d["now"] < 1 for d in drifts)
    summary = (place / "out" / "nightly.md").read_text()
    assert "drift: " in summary and "since commit commit-c" in summary


def test_many_drifts_are_counted_and_the_largest_named():
    drifts = [Drift("key", "cell", 0, f"site {n}", 0.1, 0.5, "a", "b", 1) for n in range(9)]
    night = outputs.Night("s", "c", "d", [], [], drifts=drifts)
    said = [sentence for sentence in night.sentences() if sentence.startswith("drift: ")]
    assert said[0] == "drift: 9 places of 1 cells; the 5 that grew most:" and len(said) == 6


def test_the_summary_goes_to_the_page_of_a_github_job(place, monkeypatch):
    summary = place / "step.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert run(place, "pass", "fail") == 1
    text = summary.read_text()
    assert text.startswith("before\n# fake: FAIL") and "| fail | **fail** |" in text


def test_junit_counts_every_cell_and_is_xml_whatever_a_cell_said(place):
    assert run(place, "pass", "fail", "crash") == 1
    root = ElementTree.parse(place / "out" / "nightly.xml").getroot()
    suite = root.find("testsuite")
    assert [suite.get(k) for k in ("tests", "failures", "errors", "skipped")] == list("3110")
    assert [case.get("name") for case in suite] == ["pass", "fail", "crash"]
    bad = Result(Cell("b3_20", "x"), "crash", None, 0.0, 0.0, ("\x1b[31m<&\x00 ]]>",))
    made = outputs.Night("s", "c", "d", [bad.cell], [bad])
    assert ElementTree.fromstring(outputs.junit(made).encode()).tag == "testsuites"


def test_the_page_of_a_night_is_made_from_its_files(place):
    assert run(place, "pass", "fail") == 1
    page = pages.page(run_file.read(place / "out" / "nightly_run.json"))
    assert [section.title for section in page.sections] == ["Cells", "Margins over time"]
    text = html.render(page)
    links = [row[5] for row in page.sections[0].table.rows]
    for link in links:
        folder = place / "out" / Path(link.href).parent
        assert (folder / "b3_20_run.json").is_file() and link.href in text
    assert "<h1>FAIL</h1>" in text and "1 of 2 cells passed" in text
    assert len(text) < html.LIMIT_BYTES


def test_json_is_the_only_thing_on_stdout(place, capsys):
    assert run(place, "pass", flags=("--output_format=json",)) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["verdict"] == "PASS" and record["more"]["cells"][0]["status"] == "pass"


def test_ray_without_a_cluster_is_refused_in_one_line(place, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(place, "pass", flags=("--executor=ray",)) == 2
    assert "needs ray: pip install 'greta-jax[ray]'" in capsys.readouterr().err
