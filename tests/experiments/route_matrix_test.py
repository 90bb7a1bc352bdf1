"""Routes that run beside the judge: if their process dies, nothing else is lost."""

import multiprocessing
import subprocess
import sys
import threading
import time
from pathlib import Path

from experiments import b3_20, flags
from experiments.align import records

ARGUMENTS = ("--prompt=p0_short", "--layers=0", "--max_tokens=1")


def run(out_dir, *arguments):
    code = flags.run(
        b3_20.main, b3_20.__doc__, ["b3_20.py", f"--out_dir={out_dir}", *ARGUMENTS, *arguments]
    )
    text = (out_dir / "b3_20_matrix_summary.txt").read_text()
    path = out_dir / "b3_20_p0_short_run_attn_verify.jsonl"
    return code, text, [r for r in records.read(path) if r["event"] == "site_verify"]


def test_a_process_that_is_killed_leaves_its_routes_open_and_the_judge_at_work(tmp_path):
    def kill():
        while not (beside := multiprocessing.active_children()):
            time.sleep(0.01)
        beside[0].kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    code, text, judged = run(tmp_path)
    assert code == flags.EXIT_INCONCLUSIVE
    assert "route matrix: auto/auto (not run)" in text
    assert "its process ended with exit code -9" in text
    assert judged and {r["verdict"] for r in judged} <= {"exact", "within_floor", "fused"}


def test_no_process_is_left_behind(tmp_path):
    code, text, _ = run(tmp_path)
    assert code == flags.EXIT_PASS, text
    assert not multiprocessing.active_children()


def test_a_killed_run_takes_the_process_along(tmp_path):
    command = [sys.executable, "-m", "experiments.b3_20", f"--out_dir={tmp_path}", *ARGUMENTS]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as run:
        while not (beside := spawned_by(run.pid)):
            assert run.poll() is None, "the routes were never started"
            time.sleep(0.01)
        run.kill()
    deadline = time.monotonic() + 10
    while runs(beside[0]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(beside[0])


def spawned_by(pid: int) -> list[Path]:
    """Folders of /proc of the processes that multiprocessing started for it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    folders = [Path("/proc") / child for child in children]
    return [f for f in folders if b"spawn_main" in (f / "cmdline").read_bytes()]


def runs(folder: Path) -> bool:
    """Whether a process is there and not a zombie, which nobody may be there to reap."""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
