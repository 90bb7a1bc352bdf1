"""The page of an ablation study: what each deviation costs, where, and how it grows."""

from collections.abc import Iterator, Sequence

from experiments.align import sites
from experiments.report import figures
from experiments.report.detail import layer_name
from experiments.report.page import Figure, Page, Section, Table, number
from experiments.report.run_file import RunFile

CURVES = ("total", "local", "propagated", "good", "doubt", "focus", "bad", "floor")
MOST = 48
"""Rows of a figure; the table has all."""


def page(run: RunFile) -> Page:
    rows, places = run.more.get("rows", []), run.more.get("places", {})
    return Page(
        title=f"precision ablation: {run.more.get('study', '')}",
        verdict=run.verdict,
        tone="pass" if run.exit_code == 0 else "doubt",
        sentences=run.lines or [""],
        facts=[(name, str(value)) for name, value in run.facts.items()],
        sections=[
            *_cost(rows, run),
            *_kept(run.more.get("kept", []), run),
            *_growth(rows, run),
            *_where(rows, places, run),
            *_engine(run.more.get("engine", []), run),
        ],
        command=run.command,
    )


def _cost(rows: list[dict], run: RunFile) -> Iterator[Section]:
    stored = run.more.get("table")
    if not stored:
        return
    drawn = sorted(rows, key=lambda row: -row["kl_mean"])[:MOST]
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


def _kept(searches: list[dict], run: RunFile) -> Iterator[Section]:
    """Which layers a search kept, beside what each layer costs alone."""
    for n, found in enumerate(searches):
        layers = range(len(found["alone"]))
        rows = [
            (layer, found["alone"][layer], "keep" if layer in found["kept"] else "can be low")
            for layer in layers
        ]
        values = [{"layer": str(layer), "kl": kl} for layer, kl, _ in rows]
        spec = figures.dots(values, "layer", "kl", "mean KL if only this layer is low", None)
        yield Section(
            f"Layers that can take {found['low']}",
            f"{len(found['kept'])} of {len(layers)} layers are kept to stay within "
            f"{found['budget_nats']:g} nats a token: with them the cost is {number(found['kl'])}, "
            f"without any {number(found['kl_all_low'])}. {found['evaluations']} policies were "
            "evaluated; none of the kept layers can be dropped alone.",
            Figure(f"ablation_kept_{n}", spec, f"Cost of {len(layers)} layers, each alone."),
            Table(("layer", "KL if only it is low", "answer"), rows, {"keep": "bad"}),
            run.command,
            open_table=True,
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
    yield Section(
        "Growth through depth",
        f"Relative error of the residual stream after each layer, for the {len(rows)} costliest.",
        Figure("ablation_growth", spec, f"Curves of {len(rows)} deviations over depth."),
        Table(
            ("deviation", *layers),
            [(row["name"], *(float(error) for _, error in row["growth"])) for row in rows],
        ),
        run.command,
    )


def _where(rows: list[dict], places: dict[str, Sequence], run: RunFile) -> Iterator[Section]:
    """Site by layer for the costliest deviation."""
    rows = [row for row in rows if places.get(row["name"])]
    if not rows:
        return
    worst = max(rows, key=lambda row: row["kl_mean"])["name"]
    values = [
        {"site": site, "layer": layer_name(layer), "relative": error}
        for layer, site, error in places[worst]
    ]
    chosen = {value["site"] for value in values}
    site_order = [site for site in sites.SITES if site in chosen]
    layer_order = list(dict.fromkeys(layer_name(n) for n in sorted({p[0] for p in places[worst]})))
    spec = figures.shades(
        values, ("site", site_order), ("layer", layer_order), "relative", "relative rms error"
    )
    by_place = {(value["layer"], value["site"]): value["relative"] for value in values}
    table = [(n, *(by_place.get((n, site)) for site in site_order)) for n in layer_order]
    yield Section(
        "Where the costliest errs",
        f"Relative rms error of every tensor under {worst}.",
        Figure("ablation_where", spec, f"Map of {len(layer_order)} layers by sites."),
        Table(("layer", *site_order), table),
        run.command,
    )


def _engine(rows: list[dict], run: RunFile) -> Iterator[Section]:
    if rows:
        columns = ("site", "engine", "nearest ablation", "its error", "engine over it")
        yield Section(
            "The engine beside the ablations",
            "The engine's own relative error at each site, worst layer and prompt, and the single "
            "deviation that comes nearest to it.",
            table=Table(columns, [tuple(row[name] for name in columns) for row in rows]),
            command=run.command,
            open_table=True,
        )
