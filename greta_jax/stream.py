"""A model larger than memory: layer by layer, one layer's chunks decoded as they are used.

All tokens of prompt and continuation go through each layer together (teacher-forced), with the same
ops in the same chunks as `Oracle.prefill`, hence the same bits. A run can be killed and resumed.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from greta_jax.errors import OracleError, PrecisionError
from greta_jax.model import Oracle, Run
from greta_jax.taps import Taps

CHECKPOINTED = ("float64", "float32", "float16")


@dataclass(frozen=True)
class Streamed:
    """Logits TV of every token, and the taps by (layer, site)."""

    logits_TV: np.ndarray
    taps: dict[tuple[int, str], np.ndarray]


@dataclass(frozen=True)
class Progress:
    """After a layer: how many are done, seconds so far in this process, an estimate of the rest."""

    layers_done: int
    layers: int
    elapsed_s: float
    remaining_s: float

    def __str__(self) -> str:
        return (
            f"layer {self.layers_done}/{self.layers}, {self.elapsed_s:.0f} s, "
            f"about {self.remaining_s:.0f} s left"
        )


def stream(
    oracle: Oracle,
    token_ids,
    taps: Taps = Taps(),  # noqa: B008
    checkpoint: str | Path | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Streamed:
    """One pass over all tokens; open the oracle with `resident=False` to keep memory small.

    `checkpoint`: a folder; what an earlier, killed run of the same question left there is used, and
    it is emptied of it at the end. `report` is called after each layer.

    Raises:
      OracleError: the folder holds the checkpoint of another question. PrecisionError: activations
      are of a dtype that safetensors cannot hold. Otherwise as `Oracle.prefill`.
    """
    ids_T = np.asarray(token_ids, np.int64).reshape(-1)
    run = oracle.begin(ids_T, oracle.empty_cache(), taps)
    saved = None if checkpoint is None else _Checkpoint(Path(checkpoint), oracle, ids_T, taps)
    first = 0 if saved is None else saved.restore(run)
    started, layers = time.perf_counter(), oracle.config.layers
    for layer in range(first, layers):
        oracle.run_layer(run, layer)
        run.slabs["kv.k"].pop(layer), run.slabs["kv.v"].pop(layer)
        run.x_TD.block_until_ready()
        if saved is not None:
            saved.save(run, layer)
        if report is not None:
            elapsed = time.perf_counter() - started
            left = elapsed / (layer + 1 - first) * (layers - layer - 1)
            report(Progress(layer + 1, layers, elapsed, left))
    logits_TV = oracle.finish(run)
    if saved is not None:
        saved.remove()
    return Streamed(logits_TV, run.taken)


class _Checkpoint:
    """One file: the residual stream after a layer, and the taps so far."""

    def __init__(self, folder: Path, oracle: Oracle, ids_T: np.ndarray, taps: Taps):
        if oracle.policy.activation not in CHECKPOINTED:
            raise PrecisionError(
                f"activations of {oracle.policy.activation} cannot be checkpointed",
                remedy=f"use one of {', '.join(CHECKPOINTED)}, or no checkpoint",
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "residual.safetensors"
        self.question = {
            "model": hashlib.sha256(repr(oracle.file.header).encode()).hexdigest(),
            "policy": json.dumps(oracle.policy.as_record(), sort_keys=True),
            "token_ids": json.dumps(ids_T.tolist()),
            "taps": repr(taps),
        }

    def restore(self, run: Run) -> int:
        """Loads what is there into `run`; the first layer still to compute."""
        if not self.path.exists():
            return 0
        try:
            with safe_open(self.path, framework="np") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise self._refused(f"it cannot be read: {error}") from error
        differing = [k for k, v in self.question.items() if metadata.get(k) != v]
        if differing:
            raise self._refused(f"it belongs to another {', '.join(differing)}")
        run.x_TD = run.place.everywhere(tensors.pop("residual"))
        for name, value in tensors.items():
            layer, site = name.split("|")
            run.taken[int(layer), site] = value
        return int(metadata["layer"]) + 1

    def save(self, run: Run, layer: int) -> None:
        """Replaces the file at one stroke, so that a kill leaves the old one or the new one."""
        tensors = {f"{at}|{site}": np.ascontiguousarray(v) for (at, site), v in run.taken.items()}
        tensors["residual"] = run.place.to_host(run.x_TD)
        fresh = self.path.with_suffix(".new")
        save_file(tensors, fresh, metadata=self.question | {"layer": str(layer)})
        fresh.replace(self.path)

    def remove(self) -> None:
        """The run is complete."""
        self.path.unlink()

    def _refused(self, what: str) -> OracleError:
        return OracleError(what, where=str(self.path), remedy="remove it or give another folder")
