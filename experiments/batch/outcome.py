"""What a finished process amounts to: its exit code, its run file, and the margins it measured."""

from pathlib import Path

import numpy as np

from experiments.align.errors import RecordError
from experiments.batch.cell import CRASH, FAIL, STATUS_OF_CODE, Cell, Result
from experiments.report import maps, run_file

LAST_LINES = 3


def result(cell: Cell, folder: Path, code: int, seconds: float, rss_mb: float) -> Result:
    """The result of a process that ended by itself."""
    status, reasons = STATUS_OF_CODE.get(code, CRASH), []
    margins: tuple = ()
    if code < 0:
        reasons.append(f"killed by signal {-code}")
    try:
        run = run_file.read(folder / f"{cell.experiment}_run.json")
        margins = _margins(run)
        reasons += run.lines
    except RecordError as error:
        said = _last_lines(folder / "stderr.txt")
        reasons += said or ([] if code == 0 else [str(error)])
        if status == FAIL and any("Traceback" in line for line in _lines(folder / "stderr.txt")):
            status = CRASH
    return Result(cell, status, code, seconds, rss_mb, tuple(reasons), margins)


def _margins(run: run_file.RunFile) -> tuple[tuple[int, str, float], ...]:
    """The worst local error over floor of each layer and site, over prompts and tokens."""
    worst: dict[tuple[int, str], float] = {}
    for prompt in run.prompts:
        drawn = maps.load(run.folder / prompt["maps"])
        ratios_PT = drawn.numbers["local_over_floor"]
        for place, ratios_T in zip(drawn.places, ratios_PT, strict=True):
            measured = ratios_T[~np.isnan(ratios_T)]
            if measured.size:
                largest = min(float(measured.max()), float(np.finfo(np.float64).max))
                worst[place] = max(worst.get(place, 0.0), largest)
    return tuple((layer, site, ratio) for (layer, site), ratio in worst.items())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _last_lines(path: Path) -> list[str]:
    said = [line for line in _lines(path) if line.strip() and not line.startswith("... ")]
    return said[-LAST_LINES:]
