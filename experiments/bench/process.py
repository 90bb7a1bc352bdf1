"""One measurement, one process: its peak memory is its own, and nothing is warm that should not be.

A worker is a module with `measure(question) -> dict`; both are JSON. Started by this module, it
prints its answer as the last line.
"""

import importlib
import json
import os
import subprocess
import sys
import time

MARK = "answer: "
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}


class WorkerFailed(Exception):
    """A measurement did not end well; the last words of the process say why."""


def ask(worker: str, question: dict, cache: str, timeout_s: float = 550) -> dict:
    """The worker's answer, with `total_s` from the start of its process to the end.

    `cache`: folder for compiled programs, in place of the user's own. Raises WorkerFailed.
    """
    command = [sys.executable, "-m", "experiments.bench.process", worker, json.dumps(question)]
    environ = os.environ | QUIET | {"XDG_CACHE_HOME": cache}
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environ, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as late:
        raise WorkerFailed(f"{worker} {question}: no answer in {timeout_s:.0f} s") from late
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        last = " | ".join(done.stderr.strip().splitlines()[-4:])
        raise WorkerFailed(f"{worker} {question}: exit {done.returncode}: {last[-900:]}")
    answer = json.loads(lines[-1].removeprefix(MARK))
    return answer | {"total_s": time.perf_counter() - started}


def peak_rss_bytes() -> int:
    """High-water mark of this process's memory (of this program, not of what forked it)."""
    with open("/proc/self/status", encoding="ascii") as status:
        (line,) = (line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def timed(function) -> tuple[float, object]:
    """Seconds that a call took, and what it returned."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def main() -> None:
    """Runs one worker on one question."""
    worker, question = sys.argv[1:]
    measure = importlib.import_module(f"experiments.bench.{worker}").measure
    print(MARK + json.dumps(measure(json.loads(question))), flush=True)


if __name__ == "__main__":
    main()
