"""A suite file: models x prompts x routes x KV dtypes x experiments, refused by line."""

import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.batch import yaml_lines
from experiments.batch.cell import Cell
from experiments.batch.yaml_lines import At

MATRIX = ("models", "prompts", "routes", "kv_dtypes")
FIELDS = {"models": "model", "prompts": "prompt", "routes": "route", "kv_dtypes": "kv_dtype"}
LIMITS = ("timeout_s", "memory_mb")
KEYS = ("name", *MATRIX, "experiments", "once", "exclude", *LIMITS, "drift_octaves")
OWN_FLAGS = ("out_dir", "quiet", "output_format")
"""Flags of every cell that the run of the suite sets; the matrix sets those of its FIELDS too."""


@dataclass(frozen=True)
class Checks:
    """What is possible: each callable returns why not, or an empty text.

    prompt, route, kv_dtype, experiment take a name; flag an experiment, a flag and its value;
    combination a route and a KV dtype.
    """

    prompt: Callable[[str], str]
    route: Callable[[str], str]
    kv_dtype: Callable[[str], str]
    experiment: Callable[[str], str]
    flag: Callable[[str, str, str], str]
    combination: Callable[[str, str], str]


@dataclass(frozen=True)
class Suite:
    """A checked suite; `cells` are in the file's order and all different.

    drift_octaves: how many doublings against its floor an error may grow before it is flagged.
    """

    path: Path
    name: str
    cells: tuple[Cell, ...]
    drift_octaves: float = 1.0


def load(path: Path, checks: Checks) -> Suite:
    """Raises SuiteError naming the line of whatever is unknown, double or impossible."""
    root = yaml_lines.parse(path)
    top = root.mapping(KEYS)
    axes = _axes(top, path.parent, checks)
    if not ("experiments" in top or "once" in top):
        raise root.error("no experiments: give `experiments:` or `once:`")
    limits = {name: top[name].number() for name in LIMITS if name in top}
    excluded = [_exclusion(at, axes) for at in (top["exclude"].items() if "exclude" in top else ())]
    cells: dict[str, int] = {}
    made: list[Cell] = []
    for kind in ("experiments", "once"):
        for at in top[kind].items() if kind in top else ():
            matrix = kind == "experiments"
            if matrix and (lacking := [axis for axis in MATRIX if axis not in axes]):
                raise at.error(f"experiments need {', '.join(lacking)} (or list it under `once:`)")
            for cell in _cells(at, axes if matrix else {}, limits, checks):
                if _is_excluded(cell, excluded):
                    continue
                if matrix and (why := checks.combination(cell.route, cell.kv_dtype)):
                    raise at.error(f"{cell.name} is impossible: {why} (list it under `exclude:`)")
                if cell.key in cells:
                    first = cells[cell.key]
                    raise at.error(f"duplicate cell {cell.name}, first made by line {first}")
                cells[cell.key] = at.line
                made.append(cell)
    for entry, at in excluded:
        if not any(_matches(cell, entry) for cell in _everything(top, axes, limits, checks)):
            raise at.error("this exclusion matches no cell")
    if not made:
        raise root.error("every cell is excluded")
    octaves = top["drift_octaves"].number() if "drift_octaves" in top else Suite.drift_octaves
    name = top["name"].text() if "name" in top else path.stem
    return Suite(path, name, tuple(made), octaves)


Axes = Mapping[str, Mapping[str, str]]
"""Axis -> value -> what is passed on (a model's path; else the value itself)."""


def _axes(top: Mapping[str, At], base: Path, checks: Checks) -> dict[str, dict[str, str]]:
    axes: dict[str, dict[str, str]] = {}
    if "models" in top:
        axes["models"] = {}
        for name, at in top["models"].mapping().items():
            model = Path(at.text())
            places = [place for place in (model, base / model) if place.is_file()]
            if not places:
                raise at.error(f"model {name!r}: no file {model}")
            axes["models"][name] = os.path.relpath(places[0])
    for axis in MATRIX[1:]:
        if axis in top:
            axes[axis] = _values(top[axis], axis, checks)
    return axes


def _values(listed: At, axis: str, checks: Checks) -> dict[str, str]:
    check = getattr(checks, FIELDS[axis])
    values: dict[str, str] = {}
    for at in listed.items():
        if (value := at.text()) in values:
            raise at.error(f"{value!r} is listed twice")
        if why := check(value):
            raise at.error(why)
        values[value] = value
    return values


def _cells(at: At, axes: Axes, limits: Mapping[str, float], checks: Checks) -> list[Cell]:
    """All cells of one entry: a name, or a mapping with name, label, flags and narrower axes."""
    narrower = tuple(axis for axis in MATRIX if axis in axes)
    entry = (
        {"name": at} if at.is_scalar else at.mapping(("name", "label", "flags", *narrower, *LIMITS))
    )
    if "name" not in entry:
        raise at.error("an experiment needs a `name:`")
    name = entry["name"].text()
    if why := checks.experiment(name):
        raise entry["name"].error(why)
    own = OWN_FLAGS + (tuple(FIELDS.values()) if axes else ())
    flags = _flags(entry["flags"], name, own, checks) if "flags" in entry else ()
    label = entry["label"].text() if "label" in entry else name
    limits = dict(limits) | {limit: entry[limit].number() for limit in LIMITS if limit in entry}
    if not axes:
        return [Cell(name, label, flags=flags, **limits)]
    chosen = {axis: _narrowed(entry.get(axis), axes[axis], axis) for axis in MATRIX}
    cells = []
    for model, *rest in itertools.product(*(chosen[axis] for axis in MATRIX)):
        prompt, route, kv_dtype = rest
        place = dict(prompt=prompt, route=route, kv_dtype=kv_dtype)
        path = axes["models"][model]
        cells.append(Cell(name, label, model, path, flags=flags, **place, **limits))
    return cells


def _narrowed(listed: At | None, values: Mapping[str, str], axis: str) -> list[str]:
    if listed is None:
        return list(values)
    for at in listed.items():
        if at.text() not in values:
            raise at.error(f"{at.text()!r} is not among the suite's {axis}: {', '.join(values)}")
    return list(dict.fromkeys(at.text() for at in listed.items()))


def _flags(
    listed: At, experiment: str, own: tuple[str, ...], checks: Checks
) -> tuple[tuple[str, str], ...]:
    found = []
    for name, at in listed.mapping().items():
        if name in own:
            raise at.error(f"--{name} is set by the suite itself")
        if why := checks.flag(experiment, name, at.text()):
            raise at.error(why)
        found.append((name, at.text()))
    return tuple(found)


def _exclusion(at: At, axes: Axes) -> tuple[dict[str, str], At]:
    entry = {k: v.text() for k, v in at.mapping((*FIELDS.values(), "experiment")).items()}
    if not entry:
        raise at.error("an exclusion without a key would exclude everything")
    for axis, name in FIELDS.items():
        if name in entry and entry[name] not in axes.get(axis, {}):
            raise at.error(f"{entry[name]!r} is not among the suite's {axis}")
    return entry, at


def _matches(cell: Cell, entry: Mapping[str, str]) -> bool:
    return all(value in (getattr(cell, name), cell.label) for name, value in entry.items())


def _is_excluded(cell: Cell, excluded: list[tuple[dict[str, str], At]]) -> bool:
    return any(_matches(cell, entry) for entry, _ in excluded)


def _everything(top, axes: Axes, limits: Mapping[str, float], checks: Checks) -> list[Cell]:
    entries = top["experiments"].items() if "experiments" in top else ()
    return [cell for at in entries for cell in _cells(at, axes, limits, checks)]
