"""Floors of a run, saved to a file or held against one: --save_floors, --check_floors."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from experiments.align import floors_file, sites, trace
from experiments.align.floors_file import Change, Floors
from experiments.arithmetic import OracleArithmetic
from experiments.flags import Config, prompt_text

ByPlace = dict[tuple[int, str], float]


def of_reference(
    ops: OracleArithmetic, ref: trace.Trace, layers: Iterable[int], chosen: Iterable[str]
) -> ByPlace:
    """The largest floor of every place the engine stores, at the oracle's own inputs."""
    return {
        (layer, site): float(np.max(ops.bounds(ref, layer, site)))
        for layer, site in sites.places(layers, chosen)
        if site in ops.engine_precision
    }


def load(config: Config) -> Floors | None:
    """The saved floors of --check_floors. Raises FloorsFileError."""
    return floors_file.read(Path(config.check_floors)) if config.check_floors else None


def require_comparable(saved: Floors | None, config: Config, facts: dict) -> None:
    """Raises FloorsOfAnother if the file is of another model, prompt or declared precision."""
    if saved is not None:
        path = Path(config.check_floors)
        floors_file.require_comparable(saved, _identity(config, facts), _prompts(config), path)


def of_run(config: Config, facts: dict, floors: dict[str, ByPlace]) -> Floors:
    return Floors(_identity(config, facts), _prompts(config), floors)


def changes(saved: Floors | None, now: Floors) -> list[Change]:
    return [] if saved is None else floors_file.changes(saved, now)


def _identity(config: Config, facts: dict) -> dict:
    same = {name: facts[name] for name in ("model_sha256", "engine_precision")}
    return same | {"prefill": config.prefill}


def _prompts(config: Config) -> dict[str, str]:
    return {prompt: trace.sha256(prompt_text(prompt)) for prompt in config.prompt}
