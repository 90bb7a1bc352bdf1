"""The report: three tables and a verdict, as rich renderables and as plain text."""

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from experiments.align import sensitivity, sites, verdict
from experiments.align.compare import SiteVerdict
from experiments.align.invariants import LayerInvariants

WIDTH = 118
STYLES = {
    "exact": "green",
    "within_floor": "green",
    "ok": "green",
    "not possible": "dim",
    "fused": "dim",
    "missing": "yellow",
    "vacuous": "yellow",
    "inconclusive": "yellow",
}


def _styled(status: str) -> str:
    style = STYLES.get(status, "bold red")
    return f"[{style}]{status}[/]"


def number(value: float | None) -> str:
    """Three significant digits; a dash for what was not measured."""
    return "-" if value is None else "0" if value == 0 else f"{value:.2e}"


def ratio(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.3g}"


def _table(title: str, *columns: str, left: int = 1) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    return table


def table_a(verdicts_by_prompt: Mapping[str, Sequence[SiteVerdict]], site: str) -> Table:
    """Table A: one site a layer against the oracle, over all tokens of each prompt."""
    columns = ("MAE", "max", "local max", "propagated max", "local/floor", "sees from", "verdict")
    table = _table(f"A. {site} against the oracle, all tokens", "prompt", "layer", *columns)
    for prompt, verdicts in verdicts_by_prompt.items():
        for found in (v for v in verdicts if v.site == site):
            sized = [j for j in found.judgements if j.total]
            worst = found.worst
            table.add_row(
                prompt,
                str(found.layer),
                number(sum(j.total.mae for j in sized) / len(sized) if sized else None),
                number(max((j.total.max for j in sized), default=None)),
                number(max((j.local.max for j in sized), default=None)),
                number(max((j.propagated.max for j in sized), default=None)),
                ratio(max((j.ratio_max for j in sized), default=None)),
                number(seen.absolute if (seen := sensitivity.of(found)) else None),
                _styled(worst.status),
            )
    return table


def table_through(verdicts_by_prompt: Mapping[str, Sequence[SiteVerdict]], site: str) -> Table:
    """What each input brought into one site: largest share of the propagated error (split.py)."""
    through = [
        (prompt, found)
        for prompt, verdicts in verdicts_by_prompt.items()
        for found in verdicts
        if found.site == site and found.judgements[0].through
    ]
    names = list(through[0][1].judgements[0].through) if through else []
    columns = (*(f"through {name}" for name in names), "what is left over")
    table = _table(f"A2. What {site} inherited, by input", "prompt", "layer", *columns)
    for prompt, found in through:
        shares = (max(j.through[name].max for j in found.judgements) for name in names)
        closes = max(j.split_closure_ratio for j in found.judgements)
        cells = (*map(number, shares), f"{ratio(closes)} x fp64 rounding")
        table.add_row(prompt, str(found.layer), *cells)
    return table


def table_sites(verdicts_by_prompt: Mapping[str, Sequence[SiteVerdict]]) -> Table:
    """The worst local error of every judged site over the chosen layers, and how they ended."""
    prompts = list(verdicts_by_prompt)
    columns = [
        text
        for prompt in prompts
        for text in (f"{prompt}: local/floor", "sees from", "worst verdict")
    ]
    title = "All judged sites, worst layer and token; sees from: smallest error / rms"
    table = _table(title, "site", *columns)
    for site in sites.SITES:
        cells = []
        for prompt in prompts:
            here = [v for v in verdicts_by_prompt[prompt] if v.site == site]
            if here:
                worst = verdict.worst([v.worst for v in here])
                most = max((j.ratio_max or 0.0 for v in here for j in v.judgements), default=None)
                seen = [sensitivity.of(v) for v in here]
                relative = max(s.relative for s in seen) if all(seen) else None
                cells += [ratio(most if worst.total else None), number(relative)]
                cells.append(_styled(worst.status))
        if cells:
            table.add_row(site, *cells)
    return table


def table_around(verdicts: Sequence[SiteVerdict], first: verdict.Judgement) -> Table:
    """The tensors of one token and layer, in the order in which they are computed."""
    key = first.key
    columns = ("local max", "propagated max", "floor max", "local/floor", "verdict")
    place = "" if key.layer == sites.NO_LAYER else f"layer {key.layer}, "
    table = _table(f"Around the first divergence: {place}position {key.position}", "site", *columns)
    for found in verdicts:
        here = [j for j in found.judgements if j.key.position == key.position]
        if found.layer == key.layer and here and here[0].status != verdict.Status.FUSED:
            judged = here[0]
            sizes = [size.max if size else None for size in (judged.local, judged.propagated)]
            cells = [number(value) for value in (*sizes, judged.floor_max)]
            table.add_row(found.site, *cells, ratio(judged.ratio_max), _styled(judged.status))
    return table


def table_b(
    steps_by_prompt: Mapping[str, Sequence[Sequence[LayerInvariants]]], layers: Sequence[int]
) -> Table:
    """Table B: KV invariants from addresses, over all watched decode steps.

    All layers are checked; the chosen ones have a row each, and the others share one.
    """
    columns = ("layer", "positions", "slots written", "slots read", "invariants")
    table = _table("B. KV invariants from the bytes written and read", "prompt", *columns)
    for prompt, steps in steps_by_prompt.items():
        by_layer = {layer_steps[0].layer: layer_steps for layer_steps in zip(*steps, strict=True)}
        for layer in layers:
            table.add_row(prompt, str(layer), *_invariant_cells(by_layer.pop(layer)))
        if by_layer:
            worst = max(by_layer.values(), key=lambda steps: sum(not step.ok for step in steps))
            bad = sum(not all(step.ok for step in steps) for steps in by_layer.values())
            name = f"{len(by_layer)} others" + (f", {bad} broken" if bad else "")
            table.add_row(prompt, name, *_invariant_cells(worst))
    return table


def _count(slots: int | None) -> str:
    return "not seen" if slots is None else str(slots)


def _invariant_cells(layer_steps: Sequence[LayerInvariants]) -> list[str]:
    errors = [error for step in layer_steps for error in step.errors]
    positions = [step.position for step in layer_steps]
    return [
        "-".join(map(str, sorted({positions[0], positions[-1]}))),
        "+".join(str(step.written_slots) for step in layer_steps),
        "+".join(_count(step.read_slots) for step in layer_steps),
        f"[bold red]{errors[0]}[/]" if errors else _styled("ok"),
    ]


@dataclass(frozen=True)
class RouteResult:
    """One route and prompt of the matrix: what was observed and what came out."""

    route: str
    prompt: str = ""
    observed: str = ""
    prefill_last_top1: int | None = None
    decode0_top1: int | None = None
    status: str = ""
    note: str = ""


def table_c(results: Iterable[RouteResult], expected: Mapping[str, tuple[int, int]]) -> Table:
    """Table C: the route matrix; `expected` holds the oracle's two tokens for each prompt."""
    columns = [f"{prompt}: prefill_last, decode0" for prompt in expected]
    table = _table("C. Route matrix: top-1 tokens", "route", "observed", *columns, "status", left=2)
    table.add_row("oracle", "-", *(f"{a}, {b}" for a, b in expected.values()), "-")
    by_route: dict[str, list[RouteResult]] = {}
    for result in results:
        by_route.setdefault(result.route, []).append(result)
    for route, found in by_route.items():
        ran = [r for r in found if r.decode0_top1 is not None]
        tokens = {r.prompt: f"{r.prefill_last_top1}, {r.decode0_top1}" for r in ran}
        bad = [r.status for r in found if r.status != "ok"]
        observed = ", ".join(sorted({r.observed for r in found if r.observed}))
        cells = [tokens.get(prompt, "-") for prompt in expected]
        table.add_row(route, observed or "-", *cells, _styled(bad[0] if bad else "ok"))
    return table


def table_law(prompt: str, kept: Sequence) -> Table:
    """How prefill and decode compare, lengths first; each has kind, n, worst, floor and status."""
    columns = ("n", "largest difference", "floor", "top-1", "verdict")
    table = _table(f"{prompt}: prefill against decode", "how", *columns)
    exact = [one for one in kept if one.kind == "length" and one.status == "exact"]
    if exact:
        first, last = exact[0].n, exact[-1].n
        shown = f"{first}-{last}" if last > first else str(first)
        title = f"prefill(n), {len(exact)} lengths"
        table.add_row(title, shown, "0", "-", "equal", _styled("exact"))
    for one in kept:
        if one in exact:
            continue
        name = "prefill(n)" if one.kind == "length" else one.kind
        tokens = "equal" if one.top1[0] == one.top1[1] else f"{one.top1[0]}, {one.top1[1]}"
        cells = (str(one.n), number(one.worst), "-" if one.equal else number(one.floor), tokens)
        table.add_row(name, *cells, _styled(one.status))
    return table


def table_shadow(name: str, seen: Sequence) -> Table:
    """Both attention kernels by layer; each has layer, mfma, valu (SiteVerdicts) and apart."""
    columns = ("mfma local/floor", "verdict", "valu local/floor", "verdict", "largest difference")
    table = _table(f"{name}: attn.out by both kernels, same inputs", "layer", *columns)
    for one in seen:
        cells = []
        for found in (one.mfma, one.valu):
            most = max(
                (j.ratio_max for j in found.judgements if j.ratio_max is not None), default=None
            )
            cells += [ratio(most), _styled(found.status)]
        table.add_row(str(one.layer), *cells, number(one.apart))
    return table


def table_kernels(prompt: str, rows: Iterable[tuple[str, int, int, int]]) -> Table:
    """Symbol, launches, those of which a run wrote other bytes, those of several workgroups."""
    columns = ("launches", "several workgroups", "differ", "verdict")
    table = _table(f"{prompt}: what each kernel wrote, run against run", "kernel", *columns)
    for symbol, launches, apart, several in rows:
        status = _styled("differs" if apart else "exact")
        table.add_row(symbol, str(launches), str(several), str(apart), status)
    return table


def table_laws(findings: Sequence) -> Table:
    """Laws of the oracle: name, largest error over its floor, whether it holds."""
    table = _table("Laws of the oracle", "law", "largest error / floor", "verdict")
    for found in findings:
        verdict_ = "[green]holds[/]" if found.passed else "[bold red]broken[/]"
        table.add_row(found.law, ratio(found.ratio), verdict_)
    return table


def table_time(seconds_by_stage: Mapping[str, float], total: float) -> Table:
    """Where the time went."""
    table = _table("Where the time went", "stage", "seconds")
    for stage, seconds in seconds_by_stage.items():
        table.add_row(stage, f"{seconds:.2f}")
    other = total - sum(seconds_by_stage.values())
    table.add_row("everything else", f"{other:.2f}")
    table.add_row("total", f"{total:.2f}")
    return table


TONES = {"green": "good", "red": "bad", "yellow": "doubt"}


def as_record(table: Table) -> dict:
    """A table as a page draws it: title, columns, rows, and the tone of each verdict."""
    columns = [[Text.from_markup(str(cell)) for cell in column.cells] for column in table.columns]
    rows = [[_value(cell.plain) for cell in row] for row in zip(*columns, strict=True)]
    styles = {cell.plain: " ".join(str(span.style) for span in cell.spans) for cell in columns[-1]}
    tones = {
        text: tone
        for text, style in styles.items()
        for colour, tone in TONES.items()
        if colour in style
    }
    heads = [str(column.header) for column in table.columns]
    return {"title": str(table.title), "columns": heads, "rows": rows, "tones": tones}


def _value(text: str) -> str | float | int:
    """A number where the text is one, so that it is set as one."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def plain(*renderables: RenderableType) -> str:
    """The same report without colours, for a file."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=WIDTH, color_system=None, legacy_windows=False)
    console.print(*renderables, sep="\n")
    return buffer.getvalue()
