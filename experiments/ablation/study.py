"""Runs a study: prompts, policies, measurements, and the record its page is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from experiments.ablation import evaluate, explained, outputs, search, studies
from experiments.ablation.evaluate import Cost, Engine
from experiments.ablation.factors import SHORT, Factor, combined, parse
from experiments.ablation.studies import UNITS, Variant
from experiments.align.records import writable_dir
from experiments.flags import EXIT_INCONCLUSIVE, EXIT_PASS, Config, UsageError
from experiments.progress import Clock
from experiments.reference import tokenise
from experiments.report import ablation_page
from experiments.report.page import Table
from greta_jax.model import Oracle
from greta_jax.precision import Policy

DTYPES = {"fp64": "float64", "fp32": "float32"}
VERDICTS = {EXIT_PASS: "MEASURED", EXIT_INCONCLUSIVE: "NOTHING MEASURED"}

EngineOf = Callable[[Sequence[int]], tuple[Engine, Mapping]]
"""Of a prompt's tokens: what the engine holds, and the precision that it declares by site."""


@dataclass(frozen=True)
class Asked:
    """A study's own flags."""

    study: str
    factors: tuple[str, ...]
    base: tuple[str, ...]
    kl_budget: float
    compare: str


@dataclass(frozen=True)
class Study:
    """What was measured. `engine` holds the engine's own cost by prompt, if it was asked for."""

    asked: Asked
    config: Config
    facts: dict
    costs: Mapping[str, Mapping[str, Cost]]
    summaries: Sequence[studies.Summary]
    kept: Sequence[search.Kept]
    engine: Mapping[str, Cost]
    engine_rows: Sequence[explained.SiteRow]

    @property
    def exit_code(self) -> int:
        return EXIT_PASS if self.summaries else EXIT_INCONCLUSIVE


def run(config: Config, asked: Asked, clock: Clock, engine_of: EngineOf) -> Study:
    """Raises UsageError and FactorError before anything slow starts."""
    writable_dir(config.out_path)
    if not asked.kl_budget > 0:
        raise UsageError(f"--kl_budget={asked.kl_budget:g}: must be above 0")
    with clock.stage("oracle load"):
        reference = Oracle.open(config.model, Policy.fp64())
        layers = reference.config.layers
        base = _base(config.precision, [parse(text, layers) for text in asked.base])
        factors = [parse(text, layers) for text in asked.factors]
        if len({str(factor) for factor in factors}) < len(factors) or not factors:
            raise UsageError("--factors is empty or names one twice")
        if asked.study == "pairs" and len(factors) < 2:
            raise UsageError("--study=pairs needs two --factors or more")
        ids = {prompt: tokenise(reference, prompt, config.max_tokens) for prompt in config.prompt}
    found = studies.variants(asked.study, base, factors, layers)
    kept = []
    for factor in factors if asked.study in UNITS else ():
        measure = _MeanKl(reference, ids, clock)
        answer, spared = _searched(asked, base, factor, layers, measure)
        kept, found = [*kept, answer], [*found, *spared]
    held: dict[str, Engine] = {}
    if asked.compare == "engine":
        for prompt, token_ids in ids.items():
            with clock.stage("engine", prompt):
                held[prompt], declared = engine_of(token_ids)
        policy = explained.policy(declared)
        found.append(Variant(policy.name, (), policy))
    costs, engine = _measured(reference, found, ids, held, clock)
    summaries = [studies.summary(name, list(costs[name].values())) for name in costs]
    facts = {"model_sha256": reference.model_sha256[:12], "layers": layers, "base": base.name}
    facts |= {"prompts": ", ".join(ids), "tokens": sum(map(len, ids.values()))}
    rows = explained.rows(costs, engine) if engine else []
    return Study(asked, config, facts, costs, summaries, kept, engine, rows)


def _base(precision: str, factors: Sequence[Factor]) -> Policy:
    """What every variant deviates from; the reference it is measured against is always fp64."""
    plain = Policy.uniform(DTYPES[precision])
    return replace(combined(plain, factors), name=" ".join([plain.name, *map(str, factors)]))


def _measured(
    reference: Oracle, variants: Sequence[Variant], ids: Mapping, held: Mapping, clock: Clock
) -> tuple[dict[str, dict[str, Cost]], dict[str, Cost]]:
    """variant -> prompt -> cost, and the engine's own by prompt."""
    costs: dict[str, dict[str, Cost]] = {variant.name: {} for variant in variants}
    engine = {}
    for prompt, token_ids in ids.items():
        with clock.counted("layers", prompt) as progress:
            policies = [variant.policy for variant in variants]
            measured = evaluate.costs(
                reference, policies, token_ids, progress=progress, engine=held.get(prompt)
            )
        if prompt in held:
            *measured, engine[prompt] = measured
        for variant, cost in zip(variants, measured, strict=True):
            costs[variant.name][prompt] = cost
    return costs, engine


class _MeanKl:
    """Mean KL in nats of policies over all prompts; every call is one pass a prompt."""

    def __init__(self, reference: Oracle, ids: Mapping[str, Sequence[int]], clock: Clock):
        self._reference, self._ids, self._clock = reference, ids, clock

    def __call__(self, policies: Sequence[Policy]) -> list[float]:
        found = []
        for prompt, token_ids in self._ids.items():
            with self._clock.counted("search", f"{len(policies)} policies, {prompt}") as progress:
                found.append(evaluate.costs(self._reference, policies, token_ids, False, progress))
        by_policy = zip(*found, strict=True)
        return [float(np.concatenate([cost.kl_T for cost in one]).mean()) for one in by_policy]


def _searched(
    asked: Asked, base: Policy, factor: Factor, layers: int, measure: search.MeasureAll
) -> tuple[search.Kept, list[Variant]]:
    """The answer, and the policy that was found unless it is the factor itself."""
    parts, names = studies.parts(asked.study, factor, layers)
    chosen, found = search.search(base, parts, asked.kl_budget, measure)
    kept = tuple(names[n] for n in chosen)
    shared = dict(low=str(factor), stays=_value_of(base, factor.field), unit=UNITS[asked.study])
    answer = search.Kept(**shared, parts=names, kept=kept, budget_nats=asked.kl_budget, **found)
    policy = search.policy_of(base, parts, chosen)
    return answer, [Variant(f"{factor} but in {', '.join(kept)}", (), policy)] if kept else []


def _value_of(policy: Policy, name: str) -> str:
    """What a policy has where a factor would change it, in words."""
    value = getattr(policy, name)
    if value is None:
        value = "not rounded" if name == "probs" else policy.compute
    short = {long: brief for brief, long in SHORT.items()}
    return short.get(value, value)


def tables(study: Study) -> list[tuple[str, Table]]:
    """Titles and tables, for the terminal and the page."""
    rows = studies.table(study.asked.study, study.summaries, study.asked.kl_budget)
    found = [(f"Cost of each deviation ({study.asked.study}), against fp64", rows)]
    found += [
        (f"What can take {kept.low}", ablation_page.kept_table(asdict(kept))) for kept in study.kept
    ]
    if study.engine_rows:
        title = "The engine's error beside what it declares, and the choice that it is made of"
        found.append((title, ablation_page.engine_table(engine_records(study))))
    return found


def engine_records(study: Study) -> list[dict]:
    """`explained.SiteRow` as plain values."""
    return [
        asdict(row) | {"over_declared": row.over_declared, "answer": row.answer}
        for row in study.engine_rows
    ]


def sentences(study: Study) -> list[str]:
    """The answers in words."""
    asked = study.asked
    found = [kept.sentence() for kept in study.kept]
    own = [row for row in study.summaries if row.name != explained.DECLARED]
    found += studies.sentences(asked.study, own, asked.kl_budget)
    if study.engine:
        found += explained.sentences(study.engine_rows, study.engine)
    return found


def record(study: Study, command: str, clock: Clock) -> dict:
    """The record of report.run_file."""
    first = tables(study)[0][1]
    more = {
        "study": study.asked.study,
        "budget_nats": study.asked.kl_budget,
        "rows": [asdict(summary) for summary in study.summaries],
        "places": outputs.places(study.costs),
        "table": {"columns": first.columns, "rows": first.rows},
        "engine": engine_records(study),
        "kept": [asdict(kept) for kept in study.kept],
    }
    return {
        "experiment": "precision_ablation",
        "exit_code": study.exit_code,
        "verdict": VERDICTS[study.exit_code],
        "command": command,
        "lines": sentences(study),
        "seconds": clock.seconds,
        "seconds_total": clock.total,
        "facts": study.facts,
        "more": more,
    }
