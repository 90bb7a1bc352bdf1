"""The plots, as Vega-Lite. Colours are names of the style sheet, so that a page can go dark."""

import math
from collections.abc import Mapping, Sequence

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"

# name -> (light, dark). The first seven are bands of error over floor, from nothing to far above.
PALETTE = {
    "band-0": ("#eef3f8", "#1b2a38"),
    "band-1": ("#d3e3f1", "#23405a"),
    "band-2": ("#a5c8e4", "#2f6288"),
    "band-3": ("#5f9fce", "#4a93c7"),
    "band-4": ("#f3b16b", "#c98236"),
    "band-5": ("#dd6b3f", "#d9603a"),
    "band-6": ("#9e1f2e", "#ff5a5f"),
    "absent": ("#e4e3df", "#3a3936"),
    "ink": ("#1c1f23", "#e8e6e1"),
    "soft": ("#5d646c", "#a3a8ad"),
    "rule": ("#dcdfe2", "#33373b"),
    "paper": ("#ffffff", "#15181b"),
    "local": ("#c2571a", "#f09a5b"),
    "propagated": ("#2f6fa3", "#6fb1e0"),
    "total": ("#1c1f23", "#e8e6e1"),
    "floor": ("#5d646c", "#a3a8ad"),
    "good": ("#1f7a4d", "#57c08d"),
    "bad": ("#b3261e", "#ff7a70"),
    "doubt": ("#8a6100", "#e3b341"),
    "focus": ("#7a3cc2", "#c79bff"),
}
EDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 1000.0)
BANDS = ("≤ 0.001", "≤ 0.01", "≤ 0.1", "≤ 1", "≤ 10", "≤ 1000", "> 1000")
ABSENT = "not judged"


# The colour changes sides at 1, where an error is above its floor.
_BAND_OF_CHOSEN = (
    f"!isValid(datum[part]) ? '{ABSENT}' : "
    + "".join(f"datum[part] <= {e} ? '{b}' : " for e, b in zip(EDGES, BANDS, strict=False))
    + f"'{BANDS[-1]}'"
)


def colour(name: str) -> str:
    return f"var(--{name})"


def config() -> dict:
    """Fonts and lines of every plot."""
    text = {"labelColor": colour("ink"), "titleColor": colour("soft"), "titleFontWeight": 400}
    lines = {"domainColor": colour("rule"), "tickColor": colour("rule")}
    return {
        "background": "transparent",
        "font": "system-ui, sans-serif",
        "axis": {**text, **lines, "gridColor": colour("rule"), "labelFontSize": 11},
        "legend": {**text, "orient": "top", "labelFontSize": 11, "symbolSize": 110},
        "view": {"stroke": None},
        "scale": {"invalid": {"color": {"value": colour("absent")}}},
    }


def figure(**body) -> dict:
    """A plot as wide as its place, with the configuration of all."""
    fit = {"type": "fit-x", "contains": "padding"}
    return {"$schema": SCHEMA, "config": config(), "width": "container", "autosize": fit, **body}


def _bands(title: str) -> dict:
    ranges = [colour(f"band-{i}") for i in range(len(BANDS))] + [colour("absent")]
    domain = [*BANDS, ABSENT]
    legend = {"title": title, "columns": 4, "symbolType": "square", "symbolStrokeWidth": 0}
    return {"scale": {"domain": domain, "range": ranges}, "legend": legend, "type": "nominal"}


def axis_of(field: str, order: Sequence, title: str, angle: int = 0, most: int = 48) -> dict:
    """An axis of names in their order, of which at most so many are labelled."""
    step = max(1, -(-len(order) // max(1, most)))
    shown = list(order)[::step]
    axis = {"title": title, "labelAngle": angle, "ticks": False, "domain": False}
    axis |= {"values": shown, "labelPadding": 6, "labelLimit": 260, "labelOverlap": angle == 0}
    return {"field": field, "type": "ordinal", "sort": list(order), "axis": axis}


def heat_map(
    values: Sequence[Mapping],
    x: tuple[str, Sequence],
    y: tuple[str, Sequence],
    titles: tuple[str, str],
    parts: bool,
) -> dict:
    """Error over floor by two fields. Values hold both fields, `local`, `propagated` and `status`.

    `parts` lets the reader choose between local and propagated errors.
    """
    (x_field, x_order), (y_field, y_order) = x, y
    tall = 15 if len(y_order) > 12 else 22
    angle = -50 if any(len(str(name)) > 4 for name in x_order) else 0
    tooltip = [x_field, y_field, "local"] + (["propagated", "status"] if parts else [])
    encoding = {
        "x": axis_of(x_field, x_order, titles[0], angle),
        "y": axis_of(y_field, y_order, titles[1]),
    }
    shade = {"field": "band", **_bands("largest error over floor")}
    marked = f"datum['{x_field}'] == cursor_x && datum['{y_field}'] == cursor_y"
    part = {"name": "part", "value": "local"}
    if parts:
        part["bind"] = {"input": "radio", "options": ["local", "propagated"], "name": "error: "}
    return figure(
        height=tall * max(1, len(y_order)),
        data={"values": list(values)},
        params=[part, {"name": "cursor_x", "value": None}, {"name": "cursor_y", "value": None}],
        transform=[{"calculate": _BAND_OF_CHOSEN, "as": "band"}],
        encoding=encoding,
        layer=[
            {
                "mark": {"type": "rect", "stroke": colour("paper"), "strokeWidth": 1},
                "encoding": {
                    "color": shade,
                    "tooltip": [_tip(name) for name in tooltip],
                },
            },
            {
                "transform": [{"filter": marked}],
                "mark": {"type": "rect", "filled": False, "stroke": colour("focus")}
                | {"strokeWidth": 3},
            },
        ],
    )


_LABELS = {
    "labelExpr": "datum.value == 0 ? '0' : abs(datum.value) < 0.001 || abs(datum.value) >= 1e4 "
    "? format(datum.value, '.2~e') : format(datum.value, '.2~g')",
    "tickCount": 6,
}
MOST_TICKS = 9


def _log(sizes: Sequence[float], title: str) -> dict:
    """A logarithmic axis over `sizes`, with few lines: whole powers of ten, or 1, 2 and 5."""
    low, high = min(sizes, default=0.1), max(sizes, default=1.0)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= 3 else (1,)
    ticks = [step * 10.0**power for power in powers for step in steps]
    below = [n for n, tick in enumerate(ticks) if tick <= low * (1 + 1e-9)]
    above = [n for n, tick in enumerate(ticks) if tick >= high * (1 - 1e-9)]
    ticks = ticks[below[-1] if below else 0 : above[0] + 1 if above else None]
    if len(ticks) < 2:
        ticks = [low / 2, high * 2]
    shown = ticks[:: -(-len(ticks) // MOST_TICKS)]
    scale = {"type": "log", "domain": [ticks[0], ticks[-1]], "nice": False}
    axis = {"labelExpr": _LABELS["labelExpr"], "values": shown}
    return {"type": "quantitative", "scale": scale, "title": title, "axis": axis}


def _tip(field: str) -> dict:
    numeric = field in ("local", "propagated", "total", "floor", "error", "grew")
    kind = {"type": "quantitative", "format": ".3g"} if numeric else {"type": "nominal"}
    titles = {"local": "local / floor", "propagated": "propagated / floor"}
    return {"field": field, "title": titles.get(field, field), **kind}


def waterfall(steps: Sequence[Mapping], unit: str) -> dict:
    """Steps with `step`, `from`, `to`, `kind` and the tensor's own `local`, `propagated`, `floor`.

    Each bar is what one block added to the error before it; the last is the sum.
    """
    order = [step["step"] for step in steps]
    kinds = ["grew", "shrank", "sum"]
    scale = {"domain": kinds, "range": [colour("local"), colour("good"), colour("total")]}
    tooltip = [_tip("step"), {"field": "to", "title": unit, "format": ".3g"}]
    tooltip += [{"field": n, "format": ".3g"} for n in ("added", "local", "propagated", "floor")]
    return figure(
        height=15 * len(order),
        data={"values": list(steps)},
        mark={"type": "bar", "cornerRadius": 1},
        encoding={
            "y": axis_of("step", order, "", most=len(order)),
            "x": {"field": "from", "type": "quantitative", "title": unit, "axis": _LABELS},
            "x2": {"field": "to"},
            "color": {"field": "kind", "type": "nominal", "scale": scale, "legend": {"title": ""}},
            "tooltip": tooltip,
        },
    )


def lines(
    values: Sequence[Mapping],
    x: tuple[str, Sequence],
    series: Mapping[str, str],
    titles: tuple[str, str],
    rule: float | None = None,
) -> dict:
    """Curves of `error` by `series` over an ordered axis, on a log scale. Zeros cannot be drawn.

    `series`: name of each curve -> its colour in the palette. `rule`: a level to draw across.
    """
    field, order = x
    drawn = [v for v in values if v["error"] is not None and 0 < v["error"] < math.inf]
    scale = {"domain": list(series), "range": [colour(name) for name in series.values()]}
    long_names = any(len(name) > 20 for name in series)
    legend = {"title": "", "labelLimit": 420, "columns": 2 if long_names else 0}
    shade = {"field": "series", "type": "nominal", "scale": scale, "legend": legend}
    y = _log([v["error"] for v in drawn] + ([rule] if rule else []), titles[1])
    angle = -50 if any(len(str(name)) > 4 for name in order) else 0
    tooltip = [_tip("series"), _tip(field), _tip("error")]
    tooltip += [{"field": "note", "type": "nominal"}] if any("note" in v for v in drawn) else []
    layers: list[dict] = [
        {
            "mark": {"type": "line", "point": {"size": 28}, "strokeWidth": 1.5, "tooltip": True},
            "encoding": {
                "x": axis_of(field, order, titles[0], angle),
                "y": {"field": "error", **y},
                "color": shade,
                "tooltip": tooltip,
            },
        }
    ]
    if rule is not None:
        mark = {"type": "rule", "strokeDash": [5, 4], "color": colour("bad")}
        layers.append({"mark": mark, "encoding": {"y": {"datum": rule}}})
    return figure(height=260, data={"values": drawn}, layer=layers)


MOST_LETTERS = 110
"""Of the names along an axis, that fit beside each other."""


def grid(
    values: Sequence[Mapping],
    x: tuple[str, Sequence],
    y: tuple[str, Sequence],
    tones: Mapping[str, str],
    titles: tuple[str, str],
    labelled: bool = True,
) -> dict:
    """A matrix of states: values hold both fields and `state`; if `labelled`, `text` and `note`."""
    (x_field, x_order), (y_field, y_order) = x, y
    scale = {"domain": list(tones), "range": [colour(name) for name in tones.values()]}
    shade = {"field": "state", "type": "nominal", "scale": scale, "legend": {"title": ""}}
    tooltip = [{"field": n, "type": "nominal"} for n in (y_field, x_field, "state")]
    tooltip += [{"field": "note", "type": "nominal"}] if labelled else []
    opacity = 0.25 if labelled else 0.85
    angle = -50 if sum(len(str(name)) for name in x_order) > MOST_LETTERS else 0
    cells = {"mark": {"type": "rect", "stroke": colour("paper"), "opacity": opacity}}
    cells["encoding"] = {"color": shade, "tooltip": tooltip}
    words = {"mark": {"type": "text", "color": colour("ink"), "fontSize": 11}}
    words["encoding"] = {"text": {"field": "text"}}
    return figure(
        height=(30 if labelled else 15) * len(y_order),
        data={"values": list(values)},
        encoding={
            "x": axis_of(x_field, x_order, titles[0], angle),
            "y": axis_of(y_field, y_order, titles[1]),
        },
        layer=[cells, words] if labelled else [cells],
    )


def dots(values: Sequence[Mapping], y: str, x: str, title: str, rule: float | None) -> dict:
    """One dot a row on a log scale; zeros cannot be drawn. `rule`: a level to draw across."""
    order = [value[y] for value in values]
    drawn = [value for value in values if 0 < value[x] < math.inf]
    axis = {"field": x, **_log([v[x] for v in drawn] + ([rule] if rule else []), title)}
    tooltip = [{"field": y, "type": "nominal"}, {"field": x, "format": ".3g"}]
    marks = {"type": "point", "filled": True, "size": 70, "color": colour("propagated")}
    layers: list[dict] = [
        {
            "mark": marks,
            "encoding": {
                "y": axis_of(y, order, "", most=len(order)),
                "x": axis,
                "tooltip": tooltip,
            },
        }
    ]
    if rule:
        mark = {"type": "rule", "strokeDash": [5, 4], "color": colour("bad")}
        layers.append({"mark": mark, "encoding": {"x": {"datum": rule}}})
    return figure(height=18 * max(1, len(order)), data={"values": drawn}, layer=layers)
