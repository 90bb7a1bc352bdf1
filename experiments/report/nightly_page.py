"""The page of a nightly run: verdict, cells, drifts, and margins over time."""

from collections.abc import Iterator
from urllib.parse import quote

from experiments.report import figures
from experiments.report.page import Figure, Link, Page, Section, Table, tone
from experiments.report.run_file import RunFile

TONES = {
    **{"pass": "good", "fail": "bad", "oracle": "bad", "crash": "bad"},
    **{"refused": "doubt", "inconclusive": "doubt", "timeout": "doubt", "memory": "doubt"},
}
CURVES = ("total", "local", "propagated", "good", "doubt", "focus", "bad", "floor")
WORDS = 8
"""Columns of cells that leave room for words; the legend explains the marks of more."""
MARKS = {"pass": "✓", "fail": "✗", "oracle": "✗", "crash": "✗"}
MOST_OPEN = 24
"""Rows of a table that is open from the start."""
WITH_A_PAGE = ("pass", "fail", "inconclusive", "oracle")
ANSWERS = {
    0: "Every cell of the suite passed.",
    1: "At least one cell failed.",
    2: "At least one cell was refused: its input is wrong.",
    3: "Nothing failed, but not everything that had to be shown was shown.",
    4: "The oracle failed its own check in at least one cell.",
}


def page(run: RunFile) -> Page:
    cells = run.more.get("cells", [])
    sections = [
        *_cells(cells, run),
        *_drifts(run.more.get("drifts", []), run),
        *_trend(run.more.get("trend", {}), run.more.get("drifts", []), run),
    ]
    facts = [(name, _short(str(value))) for name, value in run.facts.items()]
    return Page(
        title=f"nightly: {run.facts.get('suite', '')}",
        verdict=run.verdict,
        tone=tone(run.exit_code),
        sentences=[ANSWERS.get(run.exit_code, ""), *run.lines],
        facts=[*facts, ("cell seconds", f"{run.seconds_total:.0f}")],
        sections=sections,
        command=run.command,
    )


def _short(commit: str) -> str:
    """Twelve digits of a commit, and whether the tree was changed."""
    digest, dash, changed = commit.partition("-")
    return f"{digest[:12]}{dash}{changed}"


def _cells(cells: list[dict], run: RunFile) -> Iterator[Section]:
    if not cells:
        return
    values, down, across = [], [], []
    for cell in cells:
        row = " ".join(p for p in (cell["label"], cell["model"], cell["prompt"]) if p)
        column = " ".join(p for p in (cell["route"], cell["kv_dtype"]) if p) or "once"
        down, across = [*down, row], [*across, column]
        value = {"cell": row, "route": column, "state": cell["status"]}
        values.append(value | {"text": cell["status"], "note": cell["reason"]})
    if len(set(across)) > WORDS:
        values = [value | {"text": MARKS.get(value["state"], "?")} for value in values]
    axes = ("route", list(dict.fromkeys(across))), ("cell", list(dict.fromkeys(down)))
    columns = ("cell", "seconds", "peak MiB", "worst local / floor", "command", "report", "reason")
    rows = [
        (
            *(cell["name"], round(cell["seconds"], 1), round(cell["peak_rss_mb"]), cell["worst"]),
            *(cell["command"], _report(cell), cell["reason"], cell["status"]),
        )
        for cell in cells
    ]
    passed = sum(cell["status"] == "pass" for cell in cells)
    yield Section(
        "Cells",
        f"{passed} of {len(cells)} cells passed. The table leads to the report of each.",
        Figure(
            "cells",
            figures.grid(values, *axes, TONES, ("", "")),
            f"Matrix of {len(cells)} cells and how they ended.",
        ),
        Table((*columns, "verdict"), rows, TONES),
        run.command,
    )


def _report(cell: dict) -> Link:
    """The page of a cell, beside this one; or what it said, if it ended without one."""
    folder = f"cells/{quote(cell['folder'].rsplit('/', 1)[-1])}"
    if cell["status"] in WITH_A_PAGE:
        return Link(cell["label"], f"{folder}/{cell['experiment']}.html")
    return Link("stderr", f"{folder}/stderr.txt")


def _drifts(drifts: list[dict], run: RunFile) -> Iterator[Section]:
    if not drifts:
        return
    columns = ("cell", "layer", "site", "usual", "now", "nights", "last usual", "since commit")
    rows = [
        (
            *(d["name"], d["layer"], d["site"], float(d["baseline"]), float(d["now"])),
            *(d["nights"], d["last_good"][:12], d["since"][:12]),
        )
        for d in drifts
    ]
    yield Section(
        "Drifts",
        f"{len(drifts)} errors that grew against their floor without having reached it yet, or "
        "having passed it; those that grew most first.",
        table=Table(columns, rows),
        command=run.command,
        open_table=len(rows) <= MOST_OPEN,
    )


def _trend(trend: dict[str, list[dict]], drifts: list[dict], run: RunFile) -> Iterator[Section]:
    """The worst margin of each cell over the nights; eight are drawn, first those that drift."""
    trend = {name: points for name, points in trend.items() if points}
    if not trend:
        return
    nights = sorted({point["at"] for points in trend.values() for point in points})
    labels = {at: at[:16].replace("T", " ") for at in nights}
    drifting = {drift["name"] for drift in drifts}
    order = sorted(trend, key=lambda name: (name not in drifting, -trend[name][-1]["ratio"]))
    worst = order[: len(CURVES)]
    values = [
        {
            **{"night": labels[point["at"]], "series": name, "error": point["ratio"]},
            "note": f"commit {point['commit'][:12]}",
        }
        for name in worst
        for point in trend[name]
    ]
    spec = figures.lines(
        values,
        ("night", list(dict.fromkeys(labels.values()))),
        dict(zip(worst, CURVES, strict=False)),
        ("", "worst local error over floor"),
        rule=1.0,
    )
    rows = [
        (name, point["at"], point["commit"][:12], point["ratio"])
        for name, points in trend.items()
        for point in points
    ]
    yield Section(
        "Margins over time",
        "The worst local error over its floor in each cell, night by night. At the broken line, 1, "
        f"a cell fails. Drawn are {len(worst)} of {len(trend)} cells: those that drift, then the "
        "worst.",
        Figure("trend", spec, f"Curves of {len(worst)} cells over {len(nights)} nights."),
        Table(("cell", "night", "commit", "worst local / floor"), rows),
        run.command,
    )
