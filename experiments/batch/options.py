"""Flags of a nightly run, and what its suites may ask for."""

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from absl import flags as absl_flags

from experiments import flags
from experiments.batch.errors import SuiteError
from experiments.batch.suite import Checks
from hip_engine import routes
from hip_engine.errors import EngineError
from hip_engine.kv_types import KV_TYPES

_FLAGS = (
    (absl_flags.DEFINE_string, "suite", None, "The suite file, YAML."),
    (absl_flags.DEFINE_string, "out_dir", None, "This run's folder; artifacts/nightly/<suite>."),
    (absl_flags.DEFINE_string, "history", None, "SQLite of margins; history.sqlite in out_dir."),
    (absl_flags.DEFINE_integer, "jobs", 1, "Cells at a time on this machine."),
    (absl_flags.DEFINE_enum, "executor", "processes", ["processes", "ray"], "What runs cells."),
    (absl_flags.DEFINE_string, "ray_address", "auto", "The Ray cluster."),
    (absl_flags.DEFINE_bool, "fresh", False, "Run finished cells again."),
    (absl_flags.DEFINE_bool, "list", False, "Print the cells and run none."),
    (absl_flags.DEFINE_enum, "output_format", "text", ["text", "json"], "Tables, or a record."),
    (absl_flags.DEFINE_bool, "quiet", False, "No progress and no table: only the verdict."),
    (absl_flags.DEFINE_string, "figures", None, "Folder for PNG and SVG of the figures."),
)


RUNS_AS_A_CELL = ("flags.run(", "align_traces.run(")
"""What the program of an experiment ends with, if it takes the shared flags."""


@dataclass(frozen=True)
class Options:
    """The effective flags of a run."""

    suite: Path
    out_dir: Path
    history: Path
    jobs: int
    executor: str
    ray_address: str
    fresh: bool
    list: bool
    output_format: str
    quiet: bool
    figures: str | None


def define() -> absl_flags.FlagValues:
    values = absl_flags.FlagValues()
    for definer, *arguments in _FLAGS:
        definer(*arguments, flag_values=values)
    return values


def parse(argv: list[str]) -> Options:
    """Raises SuiteError or absl's flag errors."""
    values = define()
    if rest := values(argv)[1:]:
        raise SuiteError(f"unexpected argument {rest[0]!r}: flags look like --suite=nightly.yaml")
    if not values.suite:
        raise SuiteError("--suite=FILE is needed")
    if values.jobs < 1:
        raise SuiteError(f"--jobs={values.jobs}: at least 1 cell runs at a time")
    suite = Path(values.suite)
    out_dir = Path(values.out_dir or Path("artifacts") / "nightly" / suite.stem)
    history = Path(values.history) if values.history else out_dir / "history.sqlite"
    given = {name: values[name].value for name in Options.__dataclass_fields__}
    return Options(**given | {"suite": suite, "out_dir": out_dir, "history": history})


def help_text(doc: str) -> str:
    return f"{doc.strip()}\n\nFlags:\n{define().module_help(sys.modules[__name__])}"


def _why(check, *arguments) -> str:
    try:
        check(*arguments)
    except (flags.UsageError, EngineError, absl_flags.Error) as error:
        return " ".join(str(error).split())
    return ""


def _flag(experiment: str, name: str, value: str) -> str:
    """Why that experiment would refuse the flag."""
    module = importlib.import_module(f"experiments.{experiment}")
    known = flags.define(getattr(module, "MORE", ()))
    if name not in known:
        return f"--{name} is not a flag of {experiment}"
    return _why(known, ["suite", f"--{name}={value}"])


def _kv_dtype(name: str) -> str:
    return _why(flags.define(), ["suite", f"--kv_dtype={name}"])


def _experiment(name: str) -> str:
    """Why `python -m experiments.<name>` would run nothing, or not as a cell is run."""
    found = name.isidentifier() and importlib.util.find_spec(f"experiments.{name}")
    if found and found.origin:
        main = Path(found.origin)
        main = main.with_name("__main__.py") if found.submodule_search_locations else main
        text = main.read_text(encoding="utf-8") if main.is_file() else ""
        if any(run in text for run in RUNS_AS_A_CELL):
            return ""
        if "__main__" in text:
            return f"{name} cannot be a cell: it does not take the flags that experiments share"
    return f"there is no experiment {name!r} (python -m experiments.{name})"


def _combination(route: str, kv_dtype: str) -> str:
    return _why(routes.check, routes.Route.parse(route), KV_TYPES[kv_dtype])


CHECKS = Checks(
    prompt=lambda name: _why(flags.prompt_text, name),
    route=lambda name: _why(routes.Route.parse, name),
    kv_dtype=_kv_dtype,
    experiment=_experiment,
    flag=_flag,
    combination=_combination,
)
