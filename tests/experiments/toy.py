"""A toy model for the judge: a chain of ffn.norm layers y = W x, in fp64 and as an fp32 engine."""

from dataclasses import replace

import numpy as np

from experiments.align.compare import Arithmetic, Declared, captured
from experiments.align.trace import Run, Trace

T, D, LAYERS = 5, 24, 4
SITE = "ffn.norm"
RUN = Run("model", "prompt", (7, 11, 13, 17, 19))
U32, U64 = np.finfo(np.float32).eps / 2, np.finfo(np.float64).eps / 2
DECLARED = Declared(dims={"D": D}, stores={SITE: "float32", "embed": "float32"})


def weights() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.standard_normal((D, D)) / np.sqrt(D) for _ in range(LAYERS)]


WEIGHTS = weights()
EMBED_TD = np.random.default_rng(5).standard_normal((T, D)).astype(np.float32)


def op64(layer, site, inputs):
    x_TD = inputs["x"].astype(np.float64)
    return x_TD if site == "embed" else x_TD @ WEIGHTS[layer].T


def op64_of_each(layer, site, mixtures):
    return [op64(layer, site, inputs) for inputs in mixtures]


def bound(u):
    """Higham's bound of a dot of D terms whose weights were rounded once."""

    def rows(layer, site, inputs):
        x_TD = np.abs(inputs["x"].astype(np.float64))
        if site == "embed":
            return np.zeros_like(x_TD)
        terms = (D + 1) * u
        return terms / (1 - terms) * (x_TD @ np.abs(WEIGHTS[layer]).T)

    return rows


def inputs(trace, layer, site):
    if site == "embed":
        return {"x": EMBED_TD}
    place = (-1, "embed") if layer == 0 else (layer - 1, SITE)
    return {"x": np.asarray(captured(trace, *place, DECLARED.dims))}


ARITHMETIC = Arithmetic(
    inputs=inputs,
    op64=op64_of_each,
    floor=lambda *args: {"bound": bound(U32)(*args)},
    closure=bound(U64),
)


def oracle() -> Trace:
    rows = {(-1, "embed"): EMBED_TD.astype(np.float64)}
    for layer in range(LAYERS):
        before = rows[(-1, "embed")] if layer == 0 else rows[layer - 1, SITE]
        rows[layer, SITE] = before @ WEIGHTS[layer].T
    return Trace(RUN, rows)


def engine(fault=lambda layer, y_TD: y_TD) -> Trace:
    """The same chain in fp32; `fault(layer, y)` may spoil one op's output."""
    rows = {(-1, "embed"): EMBED_TD.copy()}
    for layer in range(LAYERS):
        before = rows[(-1, "embed")] if layer == 0 else rows[layer - 1, SITE]
        y_TD = before @ WEIGHTS[layer].astype(np.float32).T
        rows[layer, SITE] = np.asarray(fault(layer, y_TD))
    return Trace(RUN, rows)


def without(trace: Trace, layer: int, site: str) -> Trace:
    kept = {place: rows for place, rows in trace.rows_by_place.items() if place != (layer, site)}
    return replace(trace, rows_by_place=kept)
