"""Maps of sizes that no floor judges, as Vega-Lite."""

import math
from collections.abc import Mapping, Sequence

from experiments.report import figures

LARGEST = 3.4e38
"""Stands for what is not finite, which JSON cannot hold."""


def _finite(values: Sequence[Mapping], field: str) -> list[dict]:
    return [{**value, field: min(value[field], LARGEST)} for value in values]


def shades(
    values: Sequence[Mapping],
    x: tuple[str, Sequence],
    y: tuple[str, Sequence],
    field: str,
    title: str,
) -> dict:
    """A map of sizes that no floor judges: seven shades, in equal steps of the logarithm."""
    (x_field, x_order), (y_field, y_order) = x, y
    sizes = sorted(v[field] for v in values if 0 < v[field] < math.inf) or [1.0]
    low, high = sizes[len(sizes) // 20], sizes[-1]
    edges = [low * (high / low) ** (i / 6) for i in range(6)]
    colours = [figures.colour(f"band-{i}") for i in range(len(edges) + 1)]
    scale = {"type": "threshold", "domain": edges, "range": colours}
    shade = {"field": field, "type": "quantitative", "scale": scale}
    shade["legend"] = {"title": title, "direction": "horizontal", "format": ".0e"}
    shade["legend"]["gradientLength"] = 340
    tooltip = [{"field": n, "type": "nominal"} for n in (x_field, y_field)]
    tooltip.append({"field": field, "format": ".3g"})
    angle = -50 if any(len(str(name)) > 4 for name in x_order) else 0
    return figures.figure(
        height=15 * max(1, len(y_order)),
        data={"values": _finite(values, field)},
        mark={"type": "rect", "stroke": figures.colour("paper")},
        encoding={
            "x": figures.axis_of(x_field, x_order, "", angle),
            "y": figures.axis_of(y_field, y_order, y_field),
            "color": shade,
            "tooltip": tooltip,
        },
    )


HALVES = ("the largest", "≥ 1/2", "≥ 1/4", "≥ 1/8", "≥ 1/16", "smaller", "0")
"""How sizes compare with the largest of their own map; the dark end comes first."""


def half_of(size: float, largest: float) -> str:
    """The name of a size in HALVES."""
    if not size:
        return HALVES[-1]
    if size >= largest:
        return HALVES[0]
    steps = -math.log2(size / largest) if math.isfinite(largest) else math.inf
    return HALVES[1 + int(steps)] if steps <= 4 else HALVES[5]


def compared(
    values: Sequence[Mapping],
    x: tuple[str, Sequence],
    y: tuple[str, Sequence],
    field: str,
    choice: tuple[str, Sequence[str]],
) -> dict:
    """Maps of sizes, one for each value of a field that the reader chooses; the first at first.

    Values hold the fields of both axes, the choice, the size `field`, and its `half`.
    """
    (x_field, x_order), (y_field, y_order), (name, options) = x, y, choice
    shades = [figures.colour(f"band-{n}") for n in (6, 5, 4, 3, 2, 1)] + [figures.colour("absent")]
    scale = {"domain": list(HALVES), "range": shades}
    shade = {"field": "half", "type": "nominal", "scale": scale}
    shade["legend"] = {"title": "beside the largest of this map", "symbolType": "square"}
    shade["legend"] |= {"columns": 4, "symbolStrokeWidth": 0}
    tooltip = [{"field": n, "type": "nominal"} for n in (x_field, y_field)]
    tooltip.append({"field": field, "format": ".3g"})
    angle = -50 if any(len(str(one)) > 4 for one in x_order) else 0
    picked = {"name": "picked", "value": options[0]}
    if len(options) > 1:
        picked["bind"] = {"input": "select", "options": list(options), "name": f"{name}: "}
    return figures.figure(
        height=15 * max(1, len(y_order)),
        data={"values": _finite(values, field)},
        params=[picked],
        transform=[{"filter": f"datum['{name}'] == picked"}],
        mark={"type": "rect", "stroke": figures.colour("paper")},
        encoding={
            "x": figures.axis_of(x_field, x_order, "", angle),
            "y": figures.axis_of(y_field, y_order, y_field),
            "color": shade,
            "tooltip": tooltip,
        },
    )
