"""Routes that run beside the judge: if their process dies, nothing else is lost."""

import multiprocessing
import threading
import time

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
