"""Runs cells on a Ray cluster whose nodes hold this checkout; files travel back to this machine."""

import contextlib
import io
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from experiments.batch import local
from experiments.batch.cell import CRASH, Cell, Result
from experiments.batch.errors import ExecutorError

RETRIES = 5
"""Times a cell is given to another worker after one died under it."""
POLL_S = 0.5


def on_worker(cell: dict) -> tuple[Result, bytes]:
    """One cell on whatever node this is: its result and its files."""
    cell = Cell(**cell | {"flags": tuple(map(tuple, cell["flags"]))})
    with tempfile.TemporaryDirectory(prefix="cell_") as folder:
        results = list(local.run([cell], lambda _: Path(folder), jobs=1))
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            tar.add(folder, arcname=".")
    return results[0], packed.getvalue()


def unpack(files: bytes, folder: Path) -> None:
    """Puts a cell's files where a local run would have left them."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(files), mode="r:gz") as tar:
        tar.extractall(folder, filter="data")


def run(
    cells: Sequence[Cell],
    folder_of: Callable[[Cell], Path],
    address: str,
    started: Callable[[Cell], None] = lambda cell: None,
) -> Iterator[Result]:
    """Results as they come. Raises ExecutorError without ray or without a cluster."""
    try:
        import ray
    except ImportError as error:
        raise ExecutorError("--executor=ray needs ray: pip install 'greta-jax[ray]'") from error
    # Ray's threads print to stdout, which belongs to the result.
    with contextlib.redirect_stdout(sys.stderr):
        yield from _run(ray, cells, folder_of, address, started)


def _run(ray, cells, folder_of, address, started) -> Iterator[Result]:
    environment = {"env_vars": {"PYTHONPATH": str(local.ROOT)}}
    try:
        ray.init(address=address, runtime_env=environment, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ExecutorError(
            f"no Ray cluster at {address!r}: {reason} (ray start --head)"
        ) from error
    remote = ray.remote(num_cpus=1, max_retries=RETRIES)(on_worker)
    try:
        waiting = {}
        for cell in cells:
            started(cell)
            model = os.path.abspath(cell.model_path) if cell.model_path else ""
            waiting[remote.remote(asdict(cell) | {"model_path": model})] = cell
        while waiting:
            done, _ = ray.wait(list(waiting), timeout=POLL_S)
            for reference in done:
                yield _fetch(ray, reference, waiting.pop(reference), folder_of)
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
        ray.shutdown()


def _fetch(ray, reference, cell: Cell, folder_of: Callable[[Cell], Path]) -> Result:
    """A cell's result with its files in place; a cell that killed every worker is a crash."""
    try:
        result, files = ray.get(reference)
        unpack(files, folder_of(cell))
    except (ray.exceptions.RayError, OSError, tarfile.TarError) as error:
        reason = " ".join(str(error).split())[:300]
        return Result(cell, CRASH, None, 0.0, 0.0, (f"lost on the cluster: {reason}",))
    return replace(result, cell=cell)
