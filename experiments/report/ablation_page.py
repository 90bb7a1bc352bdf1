"""The page of an ablation study: what each deviation costs, where, and how it grows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from experiments.align import sites
from experiments.report import figures, shaded
from experiments.report.detail import layer_name
from experiments.report.page import Figure, Page, Section, Table, number
from experiments.report.run_file import RunFile

CURVES = ("total", "local", "propagated", "good", "doubt", "focus", "bad", "floor")
MOST = 48
"""Rows of a figure; the table has all."""
MAPS = 16
"""Deviations whose map of sites and layers can be chosen; the CSV has all."""


def page(run: RunFile) -> Page:
    run = replace(run, more=_numbers(run.more))
    rows, places = run.more.get("rows", []), run.more.get("places", {})
    return Page(
        title=f"precision ablation: {run.more.get('study', '')}",
        verdict=run.verdict,
        tone="pass" if run.exit_code == 0 else "doubt",
        sentences=run.lines or [""],
        facts=[*((name, str(value)) for name, value in run.facts.items())]
        + [("seconds", f"{run.seconds_total:.1f}")],
        sections=[
            *_kept(run.more.get("kept", []), run),
            *_cost(rows, run),
            *_pairs(rows, run),
            *_growth(rows, run),
            *_where(rows, places, run),
            *_engine(run.more.get("engine", []), run),
        ],
        command=run.command,
    )


def _numbers(value):
    """What JSON cannot hold and the record spells, as numbers again."""
    if isinstance(value, dict):
        return {key: _numbers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_numbers(one) for one in value]
    return float(value) if value in ("inf", "-inf", "nan") else value


def _cost(rows: list[dict], run: RunFile) -> Iterator[Section]:
    stored = run.more.get("table")
    if not stored:
        return
    by_name = {row["name"]: row for row in rows}
    drawn = [by_name[cells[0]] for cells in stored["rows"]][:MOST]
    spec = figures.dots(
        [{"deviation": r["name"], "kl": r["kl_mean"]} for r in drawn],
        "deviation",
        "kl",
        "mean KL, nats a token",
        run.more.get("budget_nats"),
    )
    yield Section(
        "Cost at the logits",
        "Mean KL divergence of the next-token distribution from the fp64 one. The broken line is "
        "the budget.",
        Figure("ablation_cost", spec, f"Mean KL of {len(drawn)} deviations."),
        Table(stored["columns"], stored["rows"], {"within": "good", "beyond": "bad"}),
        run.command,
    )


def kept_table(found: Mapping) -> Table:
    """One row a layer or op of a search."""
    columns = (found["unit"], f"KL if it alone is {found['low']}", "answer")
    keep, take = f"must stay {found['stays']}", "can take it"
    rows = [
        (name, alone, keep if name in found["kept"] else take)
        for name, alone in zip(found["parts"], found["alone"], strict=True)
    ]
    return Table(columns, rows, {keep: "bad", take: "good"})


def _kept(searches: list[dict], run: RunFile) -> Iterator[Section]:
    """What a search kept, beside what each layer or op costs alone."""
    for n, found in enumerate(searches):
        unit = found["unit"]
        values = [
            {unit: name, "kl": kl} for name, kl in zip(found["parts"], found["alone"], strict=True)
        ]
        title = f"mean KL if this {unit} alone is {found['low']}"
        spec = figures.dots(values, unit, "kl", title, found["budget_nats"])
        yield Section(
            f"What can take {found['low']}",
            f"{len(found['kept'])} of {len(values)} {unit}s are kept at {found['stays']} to stay "
            f"within {found['budget_nats']:g} nats a token: with them the cost is "
            f"{number(found['kl'])}, without any {number(found['kl_all_low'])}. The dearest are "
            "kept first, then dropped again one by one while the budget is met: none of those kept "
            f"can be dropped. {found['evaluations']} policies were evaluated. The broken line is "
            "the budget.",
            Figure(f"ablation_kept_{n}", spec, f"Cost of {len(values)} {unit}s, each alone."),
            kept_table(found),
            run.command,
            open_table=True,
        )


def _pairs(rows: list[dict], run: RunFile) -> Iterator[Section]:
    """What two deviations cost together, as a matrix."""
    if run.more.get("study") != "pairs":
        return
    cost = {tuple(row["name"].split(" ")): row["kl_mean"] for row in rows}
    names = [key[0] for key in cost if len(key) == 1]
    both = {
        (a, b): cost.get((a, b), cost.get((b, a), cost.get((a,)))) for a in names for b in names
    }
    values = [{"with": a, "deviation": b, "kl": kl} for (a, b), kl in both.items()]
    spec = shaded.shades(values, ("with", names), ("deviation", names), "kl", "mean KL, nats")
    yield Section(
        "Two at a time",
        "Mean KL of each pair; on the diagonal of each deviation alone.",
        Figure("ablation_pairs", spec, f"Matrix of {len(names)} deviations by themselves."),
        Table(("deviation", *names), [(b, *(both[a, b] for a in names)) for b in names]),
        run.command,
    )


def _growth(rows: list[dict], run: RunFile) -> Iterator[Section]:
    rows = sorted((r for r in rows if r["growth"]), key=lambda r: -r["kl_mean"])[: len(CURVES)]
    if not rows:
        return
    values = [
        {"layer": str(layer), "series": row["name"], "error": error}
        for row in rows
        for layer, error in row["growth"]
    ]
    layers = [str(layer) for layer, _ in rows[0]["growth"]]
    colours = dict(zip([row["name"] for row in rows], CURVES, strict=False))
    spec = figures.lines(
        values, ("layer", layers), colours, ("layer", "relative rms error of resid.out")
    )
    many = f", for the {len(rows)} costliest" if len(rows) > 1 else ""
    yield Section(
        "Growth through depth",
        f"Relative error of the residual stream after each layer{many}.",
        Figure("ablation_growth", spec, f"Curves of {len(rows)} deviations over depth."),
        Table(
            ("deviation", *layers),
            [(row["name"], *(float(error) for _, error in row["growth"])) for row in rows],
        ),
        run.command,
    )


def _where(rows: list[dict], places: dict[str, Sequence], run: RunFile) -> Iterator[Section]:
    """Site by layer of the costliest deviations, one at a time."""
    rows = sorted((r for r in rows if places.get(r["name"])), key=lambda r: -r["kl_mean"])[:MAPS]
    if not rows:
        return
    names = [row["name"] for row in rows]
    largest = {name: max(error for *_, error in places[name]) for name in names}
    values = [
        {"deviation": name, "site": site, "layer": layer_name(layer), "relative": error}
        | {"half": shaded.half_of(error, largest[name])}
        for name in names
        for layer, site, error in places[name]
    ]
    chosen = {value["site"] for value in values}
    site_order = [site for site in sites.SITES if site in chosen]
    layers = sorted({layer for layer, *_ in places[names[0]]})
    layer_order = [layer_name(layer) for layer in layers]
    axes = ("site", site_order), ("layer", layer_order)
    spec = shaded.compared(values, *axes, "relative", ("deviation", names))
    by_place = {(layer_name(layer), site): error for layer, site, error in places[names[0]]}
    table = [(n, *(by_place.get((n, site)) for site in site_order)) for n in layer_order]
    yield Section(
        "Where it errs",
        f"Relative rms error of every tensor, the worst prompt. Under {names[0]}, the costliest, "
        f"whose table is below, it is at most {number(largest[names[0]])}; precision_ablation.csv "
        "has all.",
        Figure("ablation_where", spec, f"Map of {len(layer_order)} layers by sites."),
        Table(("layer", *site_order), table),
        run.command,
    )


def engine_table(rows: Sequence[Mapping]) -> Table:
    """The engine's error at each site, and what it is made of."""
    columns = ("site", "engine", "as declared", "engine / declared", "nearest choice")
    cells = [
        (row["site"], row["engine"], row["declared"], row["over_declared"], row["choice"] or "none")
        + (f"{100 * max(row['share'], 0.0):.1f} %", row["answer"])
        for row in rows
    ]
    tones = {row["answer"]: "bad" if "departs" in row["answer"] else "good" for row in rows}
    return Table((*columns, "its share", "answer"), cells, tones)


def _engine(rows: list[dict], run: RunFile) -> Iterator[Section]:
    if not rows:
        return
    names = {"engine": "engine", "as declared": "declared"}
    values = [
        {"site": row["site"], "series": series, "error": row[key]}
        for row in rows
        for series, key in names.items()
    ]
    colours = {"engine": "local", "as declared": "propagated"}
    order = [row["site"] for row in rows]
    spec = figures.lines(values, ("site", order), colours, ("", "relative rms error"))
    yield Section(
        "The engine beside the ablations",
        "The engine's relative error at each site, over all layers and prompts, beside that of an "
        "oracle that computes as the engine declares: twice as much, one bit, is a departure. The "
        "nearest choice is the deviation of this study whose own tensors the engine's are nearest "
        "to; its share is the part of the energy of the engine's error that they account for.",
        Figure("ablation_engine", spec, f"Two curves over {len(rows)} sites."),
        engine_table(rows),
        run.command,
        open_table=True,
    )
