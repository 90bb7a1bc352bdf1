"""Where the errors of one prompt are: maps, the budget along the dataflow, the waterfall."""

from collections.abc import Iterator, Sequence

import numpy as np

from experiments.align import sites
from experiments.report import figures
from experiments.report.detail import binned_max, bins, columns, label, layer_name
from experiments.report.maps import STATUSES, Maps
from experiments.report.page import Figure, Section, Table, about, number

COLUMNS = 48
"""Positions drawn side by side; more are put together, the largest error showing."""
VERY_LARGE = 3.4e38
FUSED = STATUSES.index("fused")


def sections(prompt: str, maps: Maps, command: str, prompts: int) -> list[Section]:
    """All sections of one of `prompts` prompts; if there are more, they are about it."""
    runs = bins(maps.statuses_PT.shape[1], columns(COLUMNS, prompts))
    found = [
        *_layer_by_site(prompt, maps, command),
        *_layer_by_token(prompt, maps, command, runs),
        *_waterfall(prompt, maps, command),
        *_along_the_dataflow(prompt, maps, command),
    ]
    return about(prompt if prompts > 1 else "", found)


def _finite(value: float) -> float | None:
    """JSON has neither NaN nor infinity: what was not measured is None, the infinite very large."""
    return None if np.isnan(value) else float(f"{min(value, VERY_LARGE):.4g}")


def _orders(maps: Maps) -> tuple[list[str], list[str]]:
    """Names of sites and layers as they occur, in dataflow order; stored or not."""
    chosen = {site for _, site in maps.places}
    layers = sorted({layer for layer, _ in maps.places})
    return [site for site in sites.SITES if site in chosen], [layer_name(n) for n in layers]


def _worst_status(statuses: np.ndarray) -> str:
    return STATUSES[int(statuses.max(initial=0))]


def _over_tokens(array_PT: np.ndarray) -> np.ndarray:
    """The largest of each place, NaN only where nothing was measured."""
    lowest = np.where(np.isnan(array_PT), -np.inf, array_PT).max(axis=1, initial=-np.inf)
    return np.where(np.isneginf(lowest), np.nan, lowest)


def _layer_by_site(prompt: str, maps: Maps, command: str) -> Iterator[Section]:
    local_PT, inherited_PT = maps.numbers["local_over_floor"], maps.propagated_over_floor
    local_P, inherited_P = _over_tokens(local_PT), _over_tokens(inherited_PT)
    values = [
        {
            "site": site,
            "layer": layer_name(layer),
            "local": _finite(local_P[p]),
            "propagated": _finite(inherited_P[p]),
            "status": _worst_status(maps.statuses_PT[p]),
        }
        for p, (layer, site) in enumerate(maps.places)
    ]
    site_order, layer_order = _orders(maps)
    axes = ("site", site_order), ("layer", layer_order)
    spec = figures.heat_map(values, *axes, ("", "layer"), parts=True)
    by_place = {(v["layer"], v["site"]): v["local"] for v in values}
    rows = [
        (layer, *(_cell(by_place.get((layer, site))) for site in site_order))
        for layer in layer_order
    ]
    yield Section(
        "Errors by layer and site",
        f"{_worst_sentence(maps)} Local error is what an operation adds on the inputs it really "
        "had; propagated error came in through them. Choose a cell to see its heads and positions.",
        Figure(
            f"layer_by_site_{_slug(prompt)}",
            spec,
            f"Heat map of error over floor, {len(layer_order)} layers by {len(site_order)} sites.",
            axes=("site", "layer"),
            opens="heads",
            detail=prompt,
        ),
        Table(("layer", *site_order), rows),
        command,
    )


def _cell(value: float | None) -> str:
    return number(value)


def _slug(prompt: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in prompt)[-40:]


def _worst_sentence(maps: Maps) -> str:
    local_PT = maps.numbers["local_over_floor"]
    if np.isnan(local_PT).all():
        return "No tensor was judged."
    p, t = np.unravel_index(int(np.nanargmax(local_PT)), local_PT.shape)
    where = sites.name(*maps.places[p])
    times = number(float(local_PT[p, t]))
    return f"The largest local error is {times} of its floor: {where}, position {t}."


def _layer_by_token(
    prompt: str, maps: Maps, command: str, runs: Sequence[range]
) -> Iterator[Section]:
    tokens = maps.statuses_PT.shape[1]
    local_PB = binned_max(maps.numbers["local_over_floor"], runs)
    inherited_PB = binned_max(maps.propagated_over_floor, runs)
    _, layer_order = _orders(maps)
    values = []
    for layer in layer_order:
        here = [p for p, (number_, _) in enumerate(maps.places) if layer_name(number_) == layer]
        for b, run in enumerate(runs):
            statuses = maps.statuses_PT[here][:, list(run)]
            stored = statuses[statuses != FUSED]
            values.append(
                {
                    "position": label(run),
                    "layer": layer,
                    "local": _finite(_over_tokens(local_PB[here, b][None])[0]),
                    "propagated": _finite(_over_tokens(inherited_PB[here, b][None])[0]),
                    "status": _worst_status(stored if stored.size else statuses),
                }
            )
    positions = [label(run) for run in runs]
    axes = ("position", positions), ("layer", layer_order)
    spec = figures.heat_map(values, *axes, ("position", "layer"), parts=True)
    found = {(v["layer"], v["position"]): v["local"] for v in values}
    rows = [(n, *(_cell(found[n, position]) for position in positions)) for n in layer_order]
    together = " Neighbouring positions are put together." if len(runs) < tokens else ""
    yield Section(
        "Errors by layer and token",
        "The worst site of each layer at each position. A fault of position, tile or window shows "
        f"as columns, a fault of one layer as a row.{together} Choose a cell to see its sites.",
        Figure(
            f"layer_by_token_{_slug(prompt)}",
            spec,
            f"Heat map of error over floor, {len(layer_order)} layers by {tokens} tokens.",
            axes=("position", "layer"),
            opens="sites",
            detail=prompt,
        ),
        Table(("layer", *positions), rows),
        command,
    )


def _waterfall(prompt: str, maps: Maps, command: str) -> Iterator[Section]:
    """The mean error of the residual stream, block by block, as a sum that closes."""
    index = {place: p for p, place in enumerate(maps.places)}
    stream = [(sites.NO_LAYER, "embed")]
    layers = sorted({layer for layer, _ in maps.places if layer != sites.NO_LAYER})
    stream += [(layer, site) for layer in layers for site in ("resid.mid", "resid.out")]
    stream = [place for place in stream if place in index]
    sizes = {name: np.nanmean(_judged(maps.numbers[name]), axis=1) for name in _MEANS}
    stream = [place for place in stream if np.isfinite(sizes["total_mae"][index[place]])]
    if len(stream) < 2:
        return
    steps, before, last_layer = [], 0.0, -1
    for layer, site in stream:
        p = index[layer, site]
        total = float(sizes["total_mae"][p])
        skipped = f" (from {last_layer + 1})" if layer > last_layer + 1 else ""
        block = {"resid.mid": "attention", "resid.out": "feed-forward"}.get(site, "")
        steps.append(
            {
                "step": f"layer {layer}{skipped}, {block}" if block else site,
                "from": before,
                "to": total,
                "added": total - before,
                "kind": "grew" if total >= before else "shrank",
                "local": float(sizes["local_mae"][p]),
                "propagated": float(sizes["propagated_mae"][p]),
                "floor": _finite(sizes["floor_max"][p]),
            }
        )
        before, last_layer = total, max(layer, last_layer)
    final = {"local": None, "propagated": None, "floor": None, "added": before}
    steps.append({"step": "residual stream", "from": 0.0, "to": before, "kind": "sum", **final})
    columns = ("step", "added", "to", "local", "propagated", "floor")
    most = max(steps[:-1], key=lambda step: step["added"])
    yield Section(
        "Budget of the residual stream",
        f"How the mean error of the residual stream adds up, block by block: {number(before)} at "
        f"the end. The largest step is {most['step']}, {number(most['added'])}.",
        Figure(
            f"budget_{_slug(prompt)}",
            figures.waterfall(steps, "mean |error|, all tokens"),
            f"Waterfall of {len(steps) - 1} steps up to {number(before)}.",
        ),
        Table(columns, [tuple(step[name] for name in columns) for step in steps]),
        command,
    )


_MEANS = ("total_mae", "local_mae", "propagated_mae", "floor_max")


def _judged(array_PT: np.ndarray) -> np.ndarray:
    """Infinite errors are no numbers to average; a place without any stays NaN, silently."""
    array_PT = np.where(np.isinf(array_PT), np.nan, array_PT)
    empty = np.isnan(array_PT).all(axis=1)
    return np.where(empty[:, None], np.inf, array_PT)


def _along_the_dataflow(prompt: str, maps: Maps, command: str) -> Iterator[Section]:
    """Total, local, propagated and floor of every site, the largest over tokens and layers."""
    site_order, _ = _orders(maps)
    names = {
        "total": "total_max",
        "local": "local_max",
        "propagated": "propagated_max",
        "floor": "floor_max",
    }
    values, rows = [], []
    for site in site_order:
        here = [p for p, (_, name) in enumerate(maps.places) if name == site]
        largest = {
            series: _over_tokens(maps.numbers[name][here].reshape(1, -1))[0]
            for series, name in names.items()
        }
        for series, value in largest.items():
            values.append({"site": site, "series": series, "error": _finite(value)})
        rows.append((site, *(_finite(value) for value in largest.values())))
    if all(value["error"] is None for value in values):
        return
    spec = figures.lines(
        values, ("site", site_order), {name: name for name in names}, ("", "largest |error|")
    )
    yield Section(
        "Local and propagated along the dataflow",
        "Total = local + propagated, element by element; shown are the largest of each over all "
        "judged layers and tokens. Where local stays under the floor, rounding explains it.",
        Figure(
            f"dataflow_{_slug(prompt)}",
            spec,
            f"Four curves over {len(site_order)} sites: total, local, propagated, floor.",
        ),
        Table(("site", *names), rows),
        command,
    )
