"""What an alignment found, the assertions that decide it, and what it means as an exit code."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import chex
import numpy as np

from experiments import saved_floors, under_test
from experiments.align import compare, divergence, sites, trace, verdict
from experiments.align.attestation import why_not_attested
from experiments.align.cache_blame import CacheFault
from experiments.align.floors_file import Change, Floors
from experiments.align.report import RouteResult
from experiments.explain import Explained
from experiments.flags import EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_ORACLE, EXIT_PASS, Config
from experiments.flips import UNEXPLAINED, NextTokens
from experiments.reference import Reference
from experiments.saved_floors import ByPlace
from greta_jax.selfcheck import Finding
from hip_engine.attestation import Attestation
from hip_engine.kv_cache import KvGeometry


@dataclass(frozen=True)
class PromptResult:
    """One prompt: both sides, every verdict, and the assertion that failed, if one did."""

    reference: Reference
    run: under_test.EngineRun
    verdicts: list[compare.SiteVerdict]
    assertion: str
    explained: Explained | None = None
    next_tokens: NextTokens | None = None
    floors: ByPlace = field(default_factory=dict)
    cache_faults: list[CacheFault] = field(default_factory=list)

    @property
    def judgements(self) -> list[verdict.Judgement]:
        return [j for found in self.verdicts for j in found.judgements]

    @property
    def kv_errors(self) -> list[str]:
        layers = [step for watched in self.run.watched for step in watched.layers]
        found = [f"layer {i.layer}: {error}" for i in layers for error in i.errors]
        return found + [text for watched in self.run.watched for text in watched.stray]

    @property
    def changed_by_taps(self) -> str:
        """How the engine chooses otherwise when nothing is read back; empty if it does not."""
        start = self.reference.prompt_tokens
        for i, (got, untapped) in enumerate(
            zip(self.run.top1_T[start:], self.run.untapped_top1, strict=True)
        ):
            if got != untapped:
                return f"top-1 at position {start + i} is {got} with taps, {untapped} without"
        return ""

    @property
    def flips(self) -> list[int]:
        """Positions at which the engine's top-1 is not the oracle's."""
        pairs = zip(self.run.top1_T, self.reference.top1_T, strict=True)
        return [position for position, (got, ref) in enumerate(pairs) if got != ref]


@dataclass(frozen=True)
class Alignment:
    """One run of an experiment. `facts` are what every record repeats: hashes, commit, route.

    `laws` are what the oracle was held to: who judges must be sound himself.
    """

    config: Config
    facts: dict
    layers: tuple[int, ...]
    dims: dict[str, int]
    geometry: KvGeometry
    results: dict[str, PromptResult] = field(default_factory=dict)
    routes: list[RouteResult] = field(default_factory=list)
    device_faults: list[str] = field(default_factory=list)
    bundles: dict[str, Path] = field(default_factory=dict)
    floor_changes: list[Change] = field(default_factory=list)
    laws: list[Finding] = field(default_factory=list)

    @property
    def floors(self) -> Floors:
        """The floors to keep, of a run that was asked to save or check them."""
        by_prompt = {prompt: result.floors for prompt, result in self.results.items()}
        return saved_floors.of_run(self.config, self.facts, by_prompt)

    def first_divergence(self) -> tuple[str, divergence.Divergence] | None:
        for prompt, result in self.results.items():
            if found := divergence.first_divergence(result.judgements):
                return prompt, found
        return None

    def reasons(self) -> list[tuple[int, str]]:
        """Every reason not to pass, as (exit code, text)."""
        broken = [law for law in self.laws if not law.passed]
        found = [(EXIT_ORACLE, f"the oracle breaks a law: {law}") for law in broken]
        found += [(EXIT_FAIL, f"device fault: {text}") for text in self.device_faults]
        for prompt, result in self.results.items():
            reasons = _reasons(result, self.config, self.facts["route_resolved"])
            found += [(code, f"{prompt}: {text}") for code, text in reasons]
        if not self.results and not found:
            found.append((EXIT_INCONCLUSIVE, "no prompt was run"))
        found += _floor_reasons(self.floor_changes)
        doubtful = [r for r in self.routes if r.status not in ("ok", "not possible")]
        if doubtful:
            names = ", ".join(sorted({f"{r.observed or r.route} ({r.status})" for r in doubtful}))
            why = "".join(sorted({f"; {r.note}" for r in doubtful if not r.observed}))
            text = f"route matrix: {names}{why}; --route judges one of them"
            found.append((EXIT_INCONCLUSIVE, text))
        return found

    @property
    def exit_code(self) -> int:
        """The oracle's own failure outranks the engine's, and that outranks doubt."""
        codes = {code for code, _ in self.reasons()}
        order = (EXIT_ORACLE, EXIT_FAIL, EXIT_INCONCLUSIVE)
        return next((code for code in order if code in codes), EXIT_PASS)


def _floor_reasons(changes: list[Change]) -> Iterator[tuple[int, str]]:
    """A gate that is looser than it was fails; a place that the file lacks was not checked."""
    for code, chosen in (
        (EXIT_FAIL, [c for c in changes if c.looser]),
        (EXIT_INCONCLUSIVE, [c for c in changes if c.saved is None]),
    ):
        if chosen:
            more = f" (and {len(chosen) - 1} more)" if len(chosen) > 1 else ""
            yield code, f"--check_floors: {chosen[0].sentence()}{more}"


def _reasons(result: PromptResult, config: Config, route: str) -> Iterator[tuple[int, str]]:
    """`route` is the concrete one that was run."""
    for complaint in result.reference.complaints:
        yield EXIT_ORACLE, f"oracle self-check: {complaint}"
    if result.assertion:
        yield EXIT_FAIL, f"assertion: {result.assertion}"
    if result.kv_errors:
        yield EXIT_FAIL, f"KV invariant: {result.kv_errors[0]}"
    if wrong := result.run.misread_top1:
        yield EXIT_FAIL, f"top-1 is not the largest logit: {wrong}"
    if result.changed_by_taps:
        yield EXIT_FAIL, f"what runs is not what was judged: {result.changed_by_taps}"
    if undecided := divergence.undecided(result.judgements):
        first = undecided[0]
        place = sites.name(first.key.layer, first.key.site)
        yield _undecided_code(first), f"{place} is {first.status}: {first.reason}"
    if not any(j.status in verdict.CLEAN for j in result.judgements):
        yield EXIT_INCONCLUSIVE, "no tensor was judged"
    if not config.kv_invariants:
        yield EXIT_INCONCLUSIVE, "KV invariants were not checked (--kv_invariants)"
    elif not result.run.watched:
        yield EXIT_INCONCLUSIVE, "KV invariants were not checked: no decode step was watched"
    if not config.decode_ref:
        yield EXIT_INCONCLUSIVE, "nothing was compared with the oracle (--decode_ref)"
    seen = result.run.attestation
    if why := not_attested(route, seen):
        yield EXIT_INCONCLUSIVE, f"not attested: {why}"
    yield from _token_reasons(result)
    if config.same_top1 and result.flips:
        where = ", ".join(map(str, result.flips))
        yield EXIT_FAIL, f"--same_top1: top-1 differs at position {where}"


def _token_reasons(result: PromptResult) -> Iterator[tuple[int, str]]:
    """A flip is wrong if rounding does not explain it."""
    if result.next_tokens is None:
        if result.flips:
            where = ", ".join(map(str, result.flips))
            yield EXIT_INCONCLUSIVE, f"top-1 differs at position {where}, and nothing judged why"
        return
    for flip in result.next_tokens.flips:
        if flip.status == UNEXPLAINED:
            blamed = "" if result.assertion else "; no op of the judged layers is to blame: "
            hint = "--layers=all judges every one" if blamed else ""
            yield EXIT_FAIL, f"token flip at {flip.sentence()}{blamed}{hint}"


def not_attested(route: str, seen: Attestation) -> str:
    """Why what was seen does not attest the concrete `route`; empty if it does."""
    return why_not_attested(route, seen.observed, seen.attention_mfma, seen.attention_contains)


def _undecided_code(judgement: verdict.Judgement) -> int:
    unclosed = judgement.closure_ratio is not None and judgement.closure_ratio > 1
    return EXIT_ORACLE if unclosed else EXIT_INCONCLUSIVE


def assert_within_floors(
    verdicts: list[compare.SiteVerdict], got: trace.Trace, dims: dict[str, int]
) -> None:
    """The assertions that decide: dtype, shape, finiteness, |local| <= floor for every element.

    Ratios to the floor are compared, so that the only tolerance is one floor. All tokens of a site
    at once; where that fails, one by one, to say which token it is.
    """
    for found in verdicts:
        for judgement in found.judgements:
            if judgement.status is verdict.Status.DTYPE:
                where = f"{sites.name(found.layer, found.site)}, position {judgement.key.position}"
                raise AssertionError(f"{where}: {judgement.reason}")
        tokens = range(len(found.ratios))
        try:
            _assert_tokens(found, got, dims, tokens)
        except AssertionError:
            for position in tokens:
                try:
                    _assert_tokens(found, got, dims, range(position, position + 1))
                except AssertionError as error:
                    where = f"{sites.name(found.layer, found.site)}, position {position}"
                    raise AssertionError(f"{where}: {_first_words(error)}") from error
            raise


def _assert_tokens(found: compare.SiteVerdict, got: trace.Trace, dims, tokens: range) -> None:
    if not tokens:
        return
    rows = got.rows(found.layer, found.site)[tokens.start : tokens.stop]
    for position, row in zip(tokens, rows, strict=True):
        chex.assert_shape(row, sites.row_shape(found.site, dims, position))
    chex.assert_tree_all_finite(rows)
    worst_T = np.array([found.ratios[position].max(initial=0.0) for position in tokens])
    nothing_T, one_floor = np.zeros_like(worst_T), 1.0
    chex.assert_trees_all_close(worst_T, nothing_T, rtol=0.0, atol=one_floor)


def _first_words(error: AssertionError) -> str:
    """chex's own account of the assertion, and of the size of the violation, on one line."""
    lines = [line.strip() for line in str(error).splitlines()]
    size = [line for line in lines if line.startswith("Max absolute difference")]
    return " ".join("; ".join([lines[0].removeprefix("[Chex] ").rstrip(": "), *size]).split())
