"""Judges a stored trace: of our engine or of any other, without running it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from experiments.align import compare, divergence, name_map, report, sites, stored_trace, trace
from experiments.align.errors import TraceError
from experiments.align.stored_trace import Stored
from experiments.align.verdict import Status
from experiments.arithmetic import OracleArithmetic, in_layer, spelt
from experiments.explain import Explained, explain
from experiments.flags import (
    EXIT_FAIL,
    EXIT_INCONCLUSIVE,
    EXIT_ORACLE,
    PROMPTS,
    Config,
    UsageError,
    parse_layers,
    prompt_text,
    refuse,
)
from experiments.outcome import Outcome, reasons_of
from experiments.progress import Clock
from experiments.reference import laws, reference_of_tokens
from experiments.revision import commit
from greta_jax.bounds import OpPrecision
from greta_jax.errors import PrecisionError, TokenizerError
from greta_jax.graph import KV_SITES
from greta_jax.model import Oracle
from greta_jax.precision import Policy, unit_roundoff

ORACLE = "oracle"
DEFAULTS = {"ref": ORACLE, "got": "", "map": "sites"}
RUN_FLAGS = (
    *("route", "device", "kv_dtype", "kv_scale", "max_tokens", "inject_fault", "kv_invariants"),
    *("save_floors", "check_floors", "same_top1"),
)
Precision = Mapping[str, Mapping]


@dataclass(frozen=True)
class Sides:
    """Both traces over the same tokens; `complaints` are (exit code, text)."""

    ref: trace.Trace
    ref_precision: Precision
    got: Stored
    complaints: tuple[tuple[int, str], ...]


def judge(name: str, config: Config, own: dict[str, str], clock: Clock) -> Outcome:
    """The whole way from folders to an outcome. `own`: flags ref, got and map.

    Raises:
      TraceError, UnequalKeys, UsageError: the traces are none, or are not of one run and model.
    """
    refuse(config, RUN_FLAGS, "no model is run")
    if not own["got"]:
        raise UsageError("--got=FOLDER is needed: a folder with trace.json and tensors")
    names = name_map.load(own["map"])
    with clock.stage("traces"):
        oracle = Oracle.open(config.model, Policy.uniform(_dtype(config)))
        chosen = sites.resolve(config.points)
        got = _read(own["got"], names, oracle)
        config = replace(config, layers=_layers(config, got))
        layers = parse_layers(config.layers, oracle.config.layers)
        text = _prompt_text(config, got)
    sides = _sides(oracle, own["ref"], got, layers, clock)
    verdicts, explained = _verdicts(oracle, sides, layers, chosen, clock)
    outcome = Outcome(name, config, {k: v for k, v in own.items() if v != DEFAULTS[k]})
    prompt = str(got.manifest.get("prompt", "trace"))
    outcome.verdicts[prompt] = verdicts
    outcome.tables += [report.table_a({prompt: verdicts}, "attn.out")]
    outcome.tables += [report.table_sites({prompt: verdicts})]
    if first := divergence.first_divergence(j for v in verdicts for j in v.judgements):
        outcome.tables.append(report.table_around(verdicts, first.first))
    outcome.lines += [*_coverage(got, verdicts, layers, oracle), *_findings(verdicts, explained)]
    _check_token_ids(outcome, oracle, text, got)
    outcome.reasons += [*sides.complaints, *reasons_of(verdicts)]
    outcome.facts |= {"model_sha256": oracle.model_sha256, "commit": commit()}
    outcome.facts |= {"engine": got.manifest.get("engine", "unnamed"), "map": own["map"]}
    outcome.sure = _sure(got, verdicts)
    return outcome


def _dtype(config: Config) -> str:
    return {"fp64": "float64", "fp32": "float32"}[config.precision]


def _read(folder: str, names: name_map.NameMap, oracle: Oracle) -> Stored:
    """Raises TraceError also for a precision that cannot be."""
    found = stored_trace.read(Path(folder), names, oracle.config.dimensions, oracle.model_sha256)
    shape = oracle.config.layers, oracle.config.dimensions["K"]
    for site, declared in found.precision.items():
        try:
            for layer in range(oracle.config.layers):
                OpPrecision.of(in_layer(dict(declared), layer))
            scaled = "scale_LK" in declared
            if scaled and (site not in KV_SITES or np.shape(declared["scale_LK"]) != shape):
                raise ValueError(f"scale_LK is of {' and '.join(KV_SITES)}, in the shape {shape}")
            unit_roundoff(declared["store"]), unit_roundoff(declared.get("accumulate", "float32"))
        except (PrecisionError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise TraceError(f"{folder}: the precision declared of {site}: {error}") from error
    return found


def _layers(config: Config, got: Stored) -> str:
    """Those asked for; else those that the trace says it has, which may be more than it holds."""
    if dict(config.sources)["layers"] != "default":
        return config.layers
    return ",".join(map(str, got.manifest.get("layers") or ())) or "all"


def _prompt_text(config: Config, got: Stored) -> str | None:
    """The text of the trace's prompt, by its digest, if it was shipped or is given as --prompt.

    Raises UsageError if --prompt was given and is not the trace's.
    """
    given = dict(config.sources)["prompt"] != "default"
    names = config.prompt if given else [path.stem for path in PROMPTS.glob("*.txt")]
    texts = {trace.sha256(text): text for text in map(prompt_text, names)}
    found = texts.get(got.trace.run.prompt_sha256)
    if given and (found is None or len(texts) > 1):
        raise UsageError(f"{got.folder} is not a trace of --prompt={','.join(config.prompt)}")
    return found


def _check_token_ids(outcome: Outcome, oracle: Oracle, text: str | None, got: Stored) -> None:
    """Adds to `outcome` where the trace's ids, also those past a cut, are not its prompt's."""
    if text is None:
        outcome.lines.append("token ids were not checked: no --prompt has this trace's digest")
        return
    try:
        ids = oracle.tokenizer.encode_prompt(text)
    except TokenizerError as error:
        outcome.lines.append(f"token ids were not checked: {error}")
        return
    found = got.manifest["token_ids"][: len(ids)]
    if differ := trace.tokens_differ(ids, found, partial(spelt, oracle)):
        position, right, wrong = differ
        other = (
            f"token ids: {wrong} at position {position}, where the prompt in the vocabulary of the "
            f"model's file has {right}: what follows is about other tokens"
        )
        outcome.reasons.append((EXIT_FAIL, other))


def _sides(oracle: Oracle, ref: str, got: Stored, layers: tuple[int, ...], clock: Clock) -> Sides:
    """Both sides, cut to the tokens that both hold."""
    complaints = [(EXIT_INCONCLUSIVE, text) for text in got.complaints]
    with clock.stage("laws of the oracle"):
        broken = [law for law in laws(oracle) if not law.passed]
        complaints += [(EXIT_ORACLE, f"oracle self-check: {law}") for law in broken]
    if not got.trace.run.token_ids_T:
        raise TraceError(f"{got.folder} holds no whole token: nothing can be judged")
    if ref == ORACLE:
        with clock.stage("oracle pass"):
            prompt = str(got.manifest.get("prompt", "trace"))
            made = reference_of_tokens(oracle, prompt, got.trace.run, layers)
        complaints += [(EXIT_ORACLE, f"oracle self-check: {text}") for text in made.complaints]
        policy = oracle.policy
        entry = {"store": policy.activation, "accumulate": policy.compute}
        precision = dict.fromkeys(sites.SITES, entry) | dict.fromkeys(
            ("kv.k", "kv.v"), entry | {"store": policy.kv}
        )
        return Sides(made.trace, precision, got, tuple(complaints))
    stored = _read(ref, name_map.load("sites"), oracle)
    complaints += [(EXIT_INCONCLUSIVE, text) for text in stored.complaints]
    if stored.complaints or got.complaints:  # Whole runs of unequal length are refused.
        tokens = min(len(side.trace.run.token_ids_T) for side in (stored, got))
        stored, got = stored.first_tokens(tokens), got.first_tokens(tokens)
    trace.require_same_run(stored.trace.run, got.trace.run, partial(spelt, oracle))
    return Sides(stored.trace, stored.precision, got, tuple(complaints))


def _verdicts(
    oracle: Oracle, sides: Sides, layers: tuple[int, ...], chosen: tuple[str, ...], clock: Clock
) -> tuple[list[compare.SiteVerdict], Explained | None]:
    dims, got = oracle.config.dimensions, sides.got
    here = {site for _, site in got.trace.rows_by_place}
    stored = [site for site in sites.SITES if site in got.mapped & set(got.precision)]
    if lacking := sorted(here - set(stored)):
        raise TraceError(f"no dtype is declared for {', '.join(lacking)}: see `precision` and maps")
    ops = OracleArithmetic(oracle, dims, _whole(got.precision))
    ref_ops = OracleArithmetic(oracle, dims, _whole(sides.ref_precision))

    def inputs(side: trace.Trace, layer: int, site: str) -> dict:
        return (ref_ops if side is sides.ref else ops).inputs(side, layer, site)

    def closure(layer: int, site: str, read: dict) -> compare.Rows:
        return ref_ops.floor(layer, site, read)["bound"]

    arithmetic = replace(ops.as_arithmetic(), inputs=inputs, closure=closure)
    declared = compare.Declared.of(dims, got.precision, stored)
    verdicts, total = [], len(sites.places(layers, chosen))
    with clock.counted("replays and bounds", got.folder.name) as progress:
        judged = compare.judge_all(sides.ref, got.trace, arithmetic, declared, layers, chosen)
        for found in judged:
            verdicts.append(found)
            progress(len(verdicts), total)
    with clock.stage("known mistakes", got.folder.name):
        return verdicts, explain(ops, got.trace, verdicts)


def _whole(precision: Precision) -> dict:
    """With an entry for every site that an op's floor may ask for."""
    return {site: {"store": "float32", "accumulate": "float32"} for site in sites.SITES} | dict(
        precision
    )


def _coverage(got: Stored, verdicts, layers: Sequence[int], oracle: Oracle) -> list[str]:
    """What was judged and what was not looked at."""
    judgements = [j for found in verdicts for j in found.judgements]
    counts = divergence.counts(judgements)
    shown = ", ".join(f"{counts[s]} {s}" for s in Status if s in counts)
    lines = [f"judged {len(got.trace.run.token_ids_T)} tokens: {shown} tensors"]
    unstored = sorted({f.site for f in verdicts if f.status == Status.FUSED}, key=sites.INDEX.get)
    if unstored:
        lines.append(f"not in this engine's map: {', '.join(unstored)}")
    if got.unknown:
        names = ", ".join(got.unknown[:3])
        lines.append(f"{len(got.unknown)} names that the map does not have: {names}")
    lines.append(f"{len(layers)} of {oracle.config.layers} layers judged; routes are not attested")
    return lines


def _findings(verdicts, explained: Explained | None) -> list[str]:
    found = divergence.first_divergence(j for v in verdicts for j in v.judgements)
    lines = [found.sentence()] if found else ["no op is to blame for anything that was judged"]
    return lines + (explained.sentences() if explained else [])


def _sure(got: Stored, verdicts) -> str:
    """What the verdict rests on."""
    ratios = [j.ratio_max for v in verdicts for j in v.judgements if j.ratio_max is not None]
    finite = [ratio for ratio in ratios if np.isfinite(ratio)]
    worst = f"worst local error {max(finite):.3g} x its floor" if finite else "nothing was measured"
    guessed = "" if got.manifest.get("precision") else "; dtypes are the map's, not the engine's"
    return f"{worst}, over {len(ratios)} tensors whose inputs were captured{guessed}"
