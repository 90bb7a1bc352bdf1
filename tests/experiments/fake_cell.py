"""Stands for an experiment in tests of nightly runs: passes, fails, hangs, crashes, eats memory.

As a program it runs nightly's main with every cell replaced by itself.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from experiments.report import maps, run_file
from tests.experiments import made_up_run

CODES = {"pass": 0, "fail": 1, "refused": 2, "inconclusive": 3, "oracle": 4}


def command(cell, out_dir: Path) -> list[str]:
    """In place of Cell.command: the label says how it behaves."""
    return [sys.executable, "-m", "tests.experiments.fake_cell", cell.label, str(out_dir)]


def behave(how: str, out_dir: Path) -> int:
    scale = 1.0
    if how == "hang":
        time.sleep(600)
    elif how == "slow":
        time.sleep(1.5)
    elif how == "crash":
        raise RuntimeError("a bug of the harness")
    elif how == "memory":
        hog = np.ones(400 * 2**17)
        time.sleep(600)
        return int(hog[0])
    elif how.startswith("scaled"):
        scale = float(json.loads(Path("scale.json").read_text()))
    code = CODES.get(how, 0)
    drawn = made_up_run.made_up_maps(layers=2, tokens=3, wrong=None)
    drawn.numbers["local_over_floor"][:] *= scale
    maps.save(out_dir / "maps.npz", drawn)
    run = {"experiment": "b3_20", "exit_code": code, "verdict": how, "command": "python -m x"}
    lines = [f"first divergence: {how}"] if code else ["all clean"]
    run |= {"lines": lines, "prompts": [{"prompt": "p", "maps": "maps.npz"}]}
    run_file.write(out_dir, run)
    return code


if __name__ == "__main__":
    if sys.argv[1].startswith("--"):
        from experiments import nightly
        from experiments.batch.cell import Cell

        Cell.command = command
        sys.exit(nightly.main(["nightly.py", *sys.argv[1:]]))
    sys.exit(behave(sys.argv[1], Path(sys.argv[2])))
