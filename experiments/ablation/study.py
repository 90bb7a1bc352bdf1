"""Runs a study: prompts, policies, measurements, and the record its page is made of."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from experiments.ablation import evaluate, outputs, search, studies
from experiments.ablation.evaluate import Cost
from experiments.ablation.factors import parse
from experiments.align import sites
from experiments.align.records import writable_dir
from experiments.flags import EXIT_INCONCLUSIVE, EXIT_PASS, Config, UsageError
from experiments.progress import Clock
from experiments.reference import tokenise
from experiments.report.page import Table
from greta_jax.model import Oracle
from greta_jax.precision import Policy

DTYPES = {"fp64": "float64", "fp32": "float32"}
VERDICTS = {EXIT_PASS: "MEASURED", EXIT_INCONCLUSIVE: "NOTHING MEASURED"}

EngineCost = Callable[[Oracle, str, Sequence[int]], Cost]


@dataclass(frozen=True)
class Asked:
    """A study's own flags."""

    study: str
    factors: tuple[str, ...]
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
    layers_kept: Sequence[search.KvLayers]
    engine: Mapping[str, Cost]

    @property
    def exit_code(self) -> int:
        measured = self.summaries or self.layers_kept
        return EXIT_PASS if measured else EXIT_INCONCLUSIVE


def run(config: Config, asked: Asked, clock: Clock, engine_cost: EngineCost) -> Study:
    """Raises UsageError and FactorError before anything slow starts."""
    writable_dir(config.out_path)
    if not asked.kl_budget > 0:
        raise UsageError(f"--kl_budget={asked.kl_budget:g}: must be above 0")
    with clock.stage("oracle load"):
        base = Policy.uniform(DTYPES[config.precision])
        reference = Oracle.open(config.model, Policy.fp64())
        layers = reference.config.layers
        factors = [parse(text, layers) for text in asked.factors]
        if len({str(factor) for factor in factors}) < len(factors) or not factors:
            raise UsageError("--factors is empty or names one twice")
        ids = {prompt: tokenise(reference, prompt, config.max_tokens) for prompt in config.prompt}
    found = studies.variants(asked.study, base, factors, layers)
    costs: dict[str, dict[str, Cost]] = {variant.name: {} for variant in found}
    for prompt, token_ids in ids.items() if found else ():
        with clock.counted("layers", prompt) as progress:
            policies = [variant.policy for variant in found]
            measured = evaluate.costs(reference, policies, token_ids, progress=progress)
        for variant, cost in zip(found, measured, strict=True):
            costs[variant.name][prompt] = cost
    kept = []
    if asked.study == "kv_layers":
        for factor in factors:
            with clock.stage("search", str(factor)):
                measure = _measure(reference, ids.values())
                kept.append(search.kv_layers(base, factor, layers, asked.kl_budget, measure))
    engine = {}
    if asked.compare == "engine":
        for prompt, token_ids in ids.items():
            with clock.stage("engine", prompt):
                engine[prompt] = engine_cost(reference, prompt, token_ids)
    summaries = [studies.summary(name, list(costs[name].values())) for name in costs]
    facts = {"model_sha256": reference.model_sha256[:12], "layers": layers, "base": base.name}
    facts["tokens"] = sum(map(len, ids.values()))
    return Study(asked, config, facts, costs, summaries, kept, engine)


def _measure(reference: Oracle, prompts) -> search.MeasureAll:
    def mean_kl(policies: Sequence[Policy]) -> list[float]:
        per_prompt = [evaluate.costs(reference, policies, ids, False) for ids in prompts]
        by_policy = zip(*per_prompt, strict=True)
        return [float(np.concatenate([c.kl_T for c in costs]).mean()) for costs in by_policy]

    return mean_kl


def tables(study: Study) -> list[tuple[str, Table]]:
    """Titles and tables, for the terminal and the page."""
    found = []
    if study.summaries:
        rows = studies.table(study.asked.study, study.summaries, study.asked.kl_budget)
        found.append((f"Cost of each deviation ({study.asked.study}), against fp64", rows))
    for kept in study.layers_kept:
        columns = ("layer", "KL if only it is low", f"{kept.low} allowed")
        in_words = ["no, keep" if n in kept.kept else "yes" for n in range(len(kept.alone))]
        rows = [(n, alone, in_words[n]) for n, alone in enumerate(kept.alone)]
        found.append((f"Layers that can take {kept.low}", Table(columns, rows)))
    return found


def engine_rows(study: Study) -> list[dict]:
    """The engine's error at each site beside the deviation that comes nearest."""
    if not study.engine or not study.costs:
        return []
    own = _by_site(study.engine)
    ablated = {name: _by_site(by_prompt) for name, by_prompt in study.costs.items()}
    rows = []
    for site in sites.SITES:
        sizes = {name: size[site] for name, size in ablated.items() if size.get(site)}
        if site not in own or not sizes:
            continue
        nearest = min(sizes, key=lambda name: abs(np.log(sizes[name] / (own[site] or 1e-300))))
        row = {"site": site, "engine": own[site], "nearest ablation": nearest}
        row |= {"its error": sizes[nearest], "engine over it": own[site] / sizes[nearest]}
        rows.append(row | {"explained": own[site] <= max(sizes.values())})
    return rows


def _by_site(by_prompt: Mapping[str, Cost]) -> dict[str, float]:
    worst: dict[str, float] = {}
    for (_, site), size in studies.worst_by_place(list(by_prompt.values())).items():
        worst[site] = max(worst.get(site, 0.0), size)
    return worst


def sentences(study: Study) -> list[str]:
    """The answers in words."""
    asked = study.asked
    found = studies.sentences(asked.study, study.summaries, asked.kl_budget)
    found += [kept.sentence() for kept in study.layers_kept]
    if study.engine:
        kl_T = np.concatenate([cost.kl_T for cost in study.engine.values()])
        found.append(f"engine: {kl_T.mean():.3g} nats a token, {kl_T.max():.3g} at most.")
        names = [row["nearest ablation"] for row in engine_rows(study)]
        if names:
            nearest, count = Counter(names).most_common(1)[0]
            found.append(f"the engine errs most like {nearest}, at {count} of {len(names)} sites.")
        lost = [row["site"] for row in engine_rows(study) if not row["explained"]]
        names = ", ".join(lost)
        found.append(
            f"larger than under any deviation of this study, hence unexplained by it: {names}."
            if lost
            else "no site of the engine errs more than under some deviation of this study."
        )
    return found


def record(study: Study, command: str, clock: Clock) -> dict:
    """The record of report.run_file."""
    first = tables(study)[0][1] if study.summaries else None
    more = {
        "study": study.asked.study,
        "budget_nats": study.asked.kl_budget,
        "rows": [asdict(summary) for summary in study.summaries],
        "places": outputs.places(study.costs),
        "table": first and {"columns": first.columns, "rows": first.rows},
        "engine": engine_rows(study),
        "kept": [asdict(kept) | {"low": str(kept.low)} for kept in study.layers_kept],
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
