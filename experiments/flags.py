"""Flags that every experiment shares, with GRETA_* variables as defaults; and JAX's settings."""

import contextlib
import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from absl import flags

from experiments.align.errors import AlignError
from greta_jax.errors import OracleError
from hip_engine.errors import DeviceFault, EngineError
from hip_engine.kv_types import KV_TYPES

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = Path(__file__).resolve().parent / "prompts"
DEFAULT_MODEL = ROOT / "models" / "greta-tiny-32l" / "greta-tiny-32l-Q4_K_M.gguf"

EXIT_PASS, EXIT_FAIL, EXIT_USAGE, EXIT_INCONCLUSIVE, EXIT_ORACLE = range(5)

UNREPEATED = ("out_dir", "debug", "output_format", "quiet", "figures", "save_floors")
"""Flags that change what is shown, not what is found."""

# Variables of GRETA's own scripts, and the flag whose default each one is.
GRETA_VARIABLES = {
    "GRETA_TRACE_ATTN_DECODE_VERIFY": "attn_verify",
    "GRETA_TRACE_KV_INVARIANTS": "kv_invariants",
    "GRETA_TRACE_ATTN_LAYERS": "layers",
    "GRETA_TRACE_ATTN_POINTS": "points",
    "GRETA_ATTN_DECODE_REF": "decode_ref",
    "GRETA_FORCE_ATTN_DECODE_KERNEL": "route",
    "GRETA_FORCE_ATTN_DECODE_MATMUL": "route",
}


class UsageError(Exception):
    """Bad flags, variables or files: one line that names the thing and the remedy."""


PREFILLS = ["steps", "valu", "mfma"]
_FLAGS = (
    (flags.DEFINE_string, "model", str(DEFAULT_MODEL), "GGUF file that both sides load."),
    (flags.DEFINE_list, "prompt", ["p4_sys", "p5_ba"], "Shipped prompts, or text files."),
    (flags.DEFINE_string, "route", "manual/valu", "auto|manual|fused / auto|valu|mfma."),
    (flags.DEFINE_string, "layers", "0,1,2,31", "Layers to judge: 0,4-7 for example, or all."),
    (flags.DEFINE_list, "points", ["all"], "Sites to judge: attn.out, or GRETA's names, or all."),
    (flags.DEFINE_integer, "max_tokens", 2, "Decode steps, on the oracle's greedy tokens."),
    (
        flags.DEFINE_enum,
        "prefill",
        "steps",
        PREFILLS,
        "Prompt by steps or batched, on what.",
    ),
    (flags.DEFINE_enum, "precision", "fp64", ["fp64", "fp32"], "Arithmetic of the oracle."),
    (flags.DEFINE_enum, "device", "emulated", ["emulated", "mi300x"], "What runs the code."),
    (flags.DEFINE_enum, "kv_dtype", "float16", list(KV_TYPES), "The engine's KV cache."),
    (flags.DEFINE_string, "kv_scale", None, "Of fp8: a power of two, or calibrate_kv's file."),
    (flags.DEFINE_string, "out_dir", None, "Results; default artifacts/alignment/<date>."),
    (flags.DEFINE_string, "inject_fault", None, "Run with a named fault, which must be found."),
    (flags.DEFINE_string, "save_floors", None, "File to write the derived floors to (JSON)."),
    (flags.DEFINE_string, "check_floors", None, "Fail if a floor is looser than in this file."),
    (flags.DEFINE_bool, "attn_verify", True, "Write a record for each decode step and layer."),
    (flags.DEFINE_bool, "kv_invariants", True, "Check the bytes that decode steps write and read."),
    (flags.DEFINE_bool, "decode_ref", True, "Judge against the oracle: else nothing can pass."),
    (flags.DEFINE_bool, "same_top1", False, "Fail at any other top-1, explained or not."),
    (flags.DEFINE_bool, "save_traces", False, "Keep both sides' tensors, for localize and align."),
    (flags.DEFINE_enum, "output_format", "text", ["text", "json"], "Tables, or one JSON record."),
    (flags.DEFINE_bool, "quiet", False, "No progress and no tables: the verdict and its reasons."),
    (flags.DEFINE_string, "figures", None, "Folder for PNG and SVG of the report's figures."),
    (flags.DEFINE_bool, "debug", False, "Show the traceback of an error."),
)


def define(more: tuple = ()) -> flags.FlagValues:
    """A fresh set of the shared flags and an experiment's own; nothing outlives a call."""
    values = flags.FlagValues()
    for definer, *arguments in (*_FLAGS, *more):
        definer(*arguments, flag_values=values)
    return values


@dataclass(frozen=True)
class Config:
    """The effective configuration: what a run really used, and where each value came from."""

    model: str
    prompt: tuple[str, ...]
    route: str
    layers: str
    points: tuple[str, ...]
    max_tokens: int
    prefill: str
    precision: str
    device: str
    kv_dtype: str
    kv_scale: str | None
    out_dir: str
    inject_fault: str | None
    save_floors: str | None
    check_floors: str | None
    attn_verify: bool
    kv_invariants: bool
    decode_ref: bool
    same_top1: bool
    save_traces: bool
    output_format: str
    quiet: bool
    figures: str | None
    debug: bool
    sources: tuple[tuple[str, str], ...]

    @property
    def out_path(self) -> Path:
        return Path(self.out_dir)

    def as_record(self) -> dict:
        return asdict(self) | {"sources": dict(self.sources)}


def _unknown_variables(environ: dict[str, str]) -> None:
    for name in sorted(environ):
        if name.startswith("GRETA_") and name not in GRETA_VARIABLES:
            near = difflib.get_close_matches(name, GRETA_VARIABLES, 1, cutoff=0)[0]
            raise UsageError(
                f"unknown variable {name}: nothing reads it; nearest is {near} (unset {name})"
            )


def refuse(config: Config, names: tuple[str, ...], why: str) -> None:
    """Raises UsageError if a flag was given that an experiment does not read."""
    sources = dict(config.sources)
    if given := [name for name in names if sources[name] != "default"]:
        raise UsageError(f"--{given[0]} decides nothing here: {why}; leave it out")


def _switch(name: str, value: str) -> bool:
    if value not in ("0", "1"):
        raise UsageError(f"{name}={value!r}: use 0 or 1")
    return value == "1"


def _from_environment(values: flags.FlagValues, environ: dict[str, str]) -> dict[str, tuple]:
    """Flag name to (value, source) for every GRETA_* variable that is set and not overruled."""
    _unknown_variables(environ)
    found = {}
    for variable, flag in GRETA_VARIABLES.items():
        if variable not in environ or values[flag].present:
            continue
        text = environ[variable]
        if flag == "points":
            found[flag] = (text.split(","), variable)
        elif flag == "layers":
            found[flag] = (text, variable)
        elif flag != "route":
            found[flag] = (_switch(variable, text), variable)
    forced = [v for v, flag in GRETA_VARIABLES.items() if flag == "route" and v in environ]
    if forced and not values["route"].present:
        default = values["route"].default.split("/")
        names = ("GRETA_FORCE_ATTN_DECODE_KERNEL", "GRETA_FORCE_ATTN_DECODE_MATMUL")
        parts = [environ.get(name, part) for name, part in zip(names, default, strict=True)]
        found["route"] = ("/".join(parts), "+".join(forced))
    return found


def effective(values: flags.FlagValues, environ: dict[str, str], default_out_dir: str) -> Config:
    """Command line over GRETA_* variables over defaults. Raises UsageError."""
    overrides = _from_environment(values, environ)
    chosen, sources = {}, []
    for name in Config.__dataclass_fields__:
        if name == "sources":
            continue
        value, source = overrides.get(
            name, (values[name].value, "flag" if values[name].present else "default")
        )
        chosen[name] = tuple(value) if isinstance(value, list) else value
        sources.append((name, source))
    chosen["out_dir"] = chosen["out_dir"] or default_out_dir
    _check(chosen)
    return Config(**chosen, sources=tuple(sources))


def _check(chosen: dict) -> None:
    """Raises UsageError for values that no flag's type excludes."""
    if chosen["max_tokens"] < 1:
        raise UsageError(f"--max_tokens={chosen['max_tokens']}: at least 1 token is decoded")
    for name in ("prompt", "points"):
        if not chosen[name]:
            raise UsageError(f"--{name} is empty: nothing would be compared; leave it out")
    names = [Path(prompt).stem for prompt in chosen["prompt"]]
    if chosen["kv_scale"] and not KV_TYPES[chosen["kv_dtype"]].scaled:
        raise UsageError(
            f"--kv_scale={chosen['kv_scale']}: a {chosen['kv_dtype']} cache stores numbers as they "
            "are; use --kv_dtype=float8_e4m3fnuz"
        )
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"--prompt names {', '.join(sorted(twice))} twice: one file would be lost")


def parse_layers(text: str, layers_in_model: int) -> tuple[int, ...]:
    """Layers of `0,4-7` or `all`, sorted. Raises UsageError for one the model does not have."""
    if text == "all":
        return tuple(range(layers_in_model))
    chosen = set()
    for part in text.split(","):
        if not (match := re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)):
            raise UsageError(f"--layers={text}: {part!r} is no layer; use 0,1,2,31 or 0-3 or all")
        first, last = int(match[1]), int(match[2] or match[1])
        chosen.update(range(first, last + 1))
    for layer in sorted(chosen):
        if layer >= layers_in_model:
            raise UsageError(
                f"layer {layer} does not exist: the model has layers 0 to {layers_in_model - 1}"
            )
    return tuple(sorted(chosen))


def prompt_text(name: str) -> str:
    """The text of a shipped prompt or of a file. Raises UsageError with the known names."""
    for path in (PROMPTS / f"{name}.txt", Path(name)):
        if path.is_file():
            try:
                return path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"cannot read prompt {path} as text: {error}") from error
    known = ", ".join(sorted(path.stem for path in PROMPTS.glob("*.txt")))
    raise UsageError(f"unknown prompt {name!r}: use one of {known}, or the path of a text file")


GPU_XLA_FLAGS = "--xla_gpu_deterministic_ops=true"
"""No atomics, no algorithm chosen by a stopwatch: two runs on one kind of GPU are bit-equal."""


def configure_jax(device: str = "cpu") -> None:
    """fp64, strict promotion, and compiled programs kept between runs in the user's cache.

    Raises UsageError if `device` is "gpu" and JAX has none.
    """
    if device == "gpu":
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {GPU_XLA_FLAGS}".strip()
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "greta-jax" / "xla"
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    elif jax.default_backend() != "gpu":
        raise UsageError("--device=gpu: this JAX has no GPU; install jax[cuda13] or its ROCm build")
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def run(main: Callable[..., int], doc: str, argv: list[str] | None = None, more: tuple = ()) -> int:
    """Parses flags and calls `main` with the configuration; returns the exit code.

    An experiment with flags of its own passes their definitions as `more`, (definer, name, default,
    ...) each, and `main` gets the flag values too.

    An error that a side or the judge raises on purpose becomes one line and exit 2, a kernel that
    faults while it runs one line and exit 1; --debug shows the traceback too. Whoever reads
    standard output may leave (`| head`): the exit code stays.
    """
    with contextlib.redirect_stdout(_WhileRead(sys.stdout)):
        code = _run(main, doc, list(sys.argv if argv is None else argv), more)
        sys.stdout.flush()
    return code


def _run(main: Callable[..., int], doc: str, argv: list[str], more: tuple) -> int:
    values = define(more)
    if _asks_for_help(argv):
        print(f"{doc.strip()}\n\nFlags:\n{values.module_help(sys.modules[__name__])}")
        return EXIT_PASS
    debug = any(re.fullmatch("--debug(=(true|1))?", arg) for arg in argv)
    try:
        rest = values(argv)[1:]
        if rest:
            raise UsageError(f"unexpected argument {rest[0]!r}: flags look like --prompt=p4_sys")
        config = effective(values, dict(os.environ), _dated_out_dir())
        return main(config, values) if more else main(config)
    except (UsageError, flags.Error, AlignError, OracleError, EngineError) as error:
        if debug:
            traceback.print_exc()
        print(f"{Path(argv[0]).stem}: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_FAIL if isinstance(error, DeviceFault) else EXIT_USAGE


def parse_own(values: flags.FlagValues, doc: str, argv: list[str]) -> int | None:
    """For a program that has none of the shared flags: the exit code, if there is nothing to do."""
    if _asks_for_help(argv):
        print(f"{doc.strip()}\n\nFlags:{values.get_help()}")
        return EXIT_PASS
    try:
        values(argv)
    except flags.Error as error:
        print(f"{Path(argv[0]).stem}: {error}; --help has examples", file=sys.stderr)
        return EXIT_USAGE
    return None


class _WhileRead:
    """Standard output for as long as somebody reads it; then it goes nowhere."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with self._open():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._open():
            self._stream.flush()

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def _asks_for_help(argv: list[str]) -> bool:
    return any(arg in ("--help", "-h", "-help", "--helpfull") for arg in argv[1:])


def _dated_out_dir() -> str:
    import datetime

    return str(Path("artifacts") / "alignment" / datetime.date.today().isoformat())
