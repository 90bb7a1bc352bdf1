"""What the judge knows beside errors: what was inherited, its floors, next tokens, its limits."""

from collections.abc import Iterator, Mapping

from experiments.align import sites
from experiments.report import figures
from experiments.report.detail import layer_name
from experiments.report.page import Figure, Section, Table, about, number

SHOWN = 24
"""Contributions drawn; the table has those that make up the rest as one."""


def sections(events: Mapping[str, list[dict]], command: str) -> list[Section]:
    """Of every prompt, each only if the run recorded it."""
    found: list[Section] = []
    for prompt, records in events.items():
        summary = next((r for r in records if r["event"] == "summary"), {})
        of_prompt = [
            *_cache_faults(summary, command),
            *_next_tokens(prompt, summary.get("next_tokens") or {}, command),
            *_inherited(records, command),
            *_floors(records, summary, command),
        ]
        found += about(prompt if len(events) > 1 else "", of_prompt)
    return [*found, *_coverage(events, command)]


def _cache_faults(summary: Mapping, command: str) -> Iterator[Section]:
    faults = summary.get("cache_faults") or []
    if not faults:
        return
    names = ("kind", "cache", "layer", "slot", "head", "step", "token_id", "count", "holds")
    rows = [tuple(fault[name] for name in (*names, "witness")) for fault in faults]
    first = faults[0]
    yield Section(
        "Faults of the cache",
        f"{len(faults)} by kind, cache and layer; the earliest: {first['cache'].upper()} of layer "
        f"{first['layer']}, slot {first['slot']}, {first['kind']} in step {first['step']}.",
        table=Table((*names, "witness"), rows),
        command=command,
        open_table=True,
    )


def _next_tokens(prompt: str, found: Mapping, command: str) -> Iterator[Section]:
    if not found:
        return
    kl_T = [_number(value) for value in found["kl_by_token"]]
    positions = [str(position) for position in range(len(kl_T))]
    flips = {flip["position"]: flip for flip in found["flips"]}
    values = [
        {"position": position, "series": "KL", "error": float(f"{kl:.3g}")}
        for position, kl in zip(positions, kl_T, strict=True)
    ]
    rows = [
        (
            t,
            kl_T[t],
            _number(found["margin_by_token"][t]),
            _number(found["margin_change_by_token"][t]),
            found["shared_top_k_by_token"][t],
            flips[t]["status"] if t in flips else "same",
        )
        for t in range(len(kl_T))
    ]
    error, k = _number(found["kl_mean_standard_error"]), found["top_k"]
    columns = ("position", "KL in nats", "margin", "its change", f"of top {k} shared", "top-1")
    tones = {"same": "good", "explained": "doubt", "unexplained": "bad", "not judged": "doubt"}
    axis = ("position", positions), {"KL": "propagated"}, ("position", "nats")
    slug = "".join(c if c.isalnum() else "_" for c in prompt)[-40:]
    yield Section(
        "Next tokens",
        f"KL of the oracle's next token to the engine's: {number(_number(found['kl_mean']))} ± "
        f"{number(error)} nats a token, at most {number(_number(found['kl_max']))} at position "
        f"{found['kl_max_position']}. Same top-1 at {found['same_top1']} of {len(kl_T)} positions. "
        "A flip is explained if rounding alone may close the oracle's margin.",
        Figure(f"kl_{slug}", figures.lines(values, *axis), f"KL over {len(kl_T)} positions."),
        Table(columns, rows, tones),
        command,
    )
    for attribution in found["attributions"]:
        yield _attribution(slug, attribution, command)


def _attribution(slug: str, found: Mapping, command: str) -> Section:
    largest = found["contributions"][:SHOWN]
    rows = [(_where(c), _number(c["margin"])) for c in largest]
    if rest := found["contributions"][SHOWN:]:
        rows.append((f"{len(rest)} more", sum(_number(c["margin"]) or 0.0 for c in rest)))
    total = _number(found["sum_of_contributions"])
    rows += [("sum", total), ("the engine's change", _number(found["change"]))]
    values = [{"op": _where(c), "margin": abs(_number(c["margin"]) or 0.0)} for c in largest]
    first, second = found["tokens"]
    floor = _number(found["floor"])
    may = f" Rounding may move it by {number(floor)}." if floor is not None else ""
    spec = figures.dots(values, "op", "margin", "|change of the margin|", None)
    return Section(
        f"A margin taken apart, position {found['position']}",
        f"The oracle holds token {first} over {second} by {number(found['margin'])}; the engine "
        f"moved that by {number(_number(found['change']))}, and every op's own error, times the "
        f"gradient of the margin at its site, makes {number(total)}.{may}",
        Figure(f"margin_{slug}_{found['position']}", spec, f"{len(values)} largest contributions."),
        Table(("op", "change of the margin"), rows),
        command,
    )


def _where(contribution: Mapping) -> str:
    layer, last = contribution["layer"], contribution["last_layer"]
    if last is None:
        return sites.name(layer, contribution["site"])
    return f"layers {layer} to {last}, not judged"


def _number(value: object) -> float | None:
    """A number of a record; records spell what JSON cannot, `inf` and `nan`, as text."""
    return None if value is None else float(value)


def _inherited(records: list[dict], command: str) -> Iterator[Section]:
    """One row a layer, of attention alone; the records have every op of several inputs."""
    found = [r for r in records if r["event"] == "site_verify" and r["site"] == "attn.out"]
    found = [r for r in found if r.get("through_max_all")]
    if not found:
        return
    names = tuple(found[0]["through_max_all"])
    rows = [
        (layer_name(r["layer"]), *(_number(r["through_max_all"][name]) for name in names))
        + (_number(r["propagated_max_all"]),)
        for r in found
    ]
    yield Section(
        "What attn.out inherited, by input",
        "The propagated error divided among q, K and V: what switching an input to the engine's "
        "adds, averaged over all orders of switching, the largest over elements and tokens. Shares "
        "of one element add up to what it inherited.",
        table=Table(("layer", *(f"through {name}" for name in names), "propagated"), rows),
        command=command,
    )


def _floors(records: list[dict], summary: Mapping, command: str) -> Iterator[Section]:
    seen: dict[str, float | None] = {}
    for r in records:
        if r["event"] == "site_verify":
            value = _number(r.get("smallest_error_detected_over_rms"))
            before = seen.get(r["site"], 0.0)
            seen[r["site"]] = None if None in (value, before) else max(value, before)
    names = ("bound", "ablation", "ablation_over_bound", "local_over_ablation")
    rows = [
        (f["site"], *(_number(f[name]) for name in names), f["bits_modelled"], f["bits_differ"])
        + (seen.get(f["site"]),)
        for f in summary.get("floors") or []
    ]
    if not rows:
        return
    yield Section(
        "Floors and what would have been seen",
        "Bound: the most that rounding may do. Ablation: what the op does at the precision the "
        "engine declares; beyond 1 x its bound, the bound would be wrong. Local / ablation near 1: "
        "the engine rounds as it says. Bits: elements predicted to the last bit, and those that "
        "are others. The last column is the smallest error, over the rms of the tensor, that would "
        "have been found in whichever element it lay.",
        table=Table(
            ("site", "bound", "ablation", "ablation / bound", "local / ablation")
            + ("bits predicted", "others", "smallest error seen"),
            rows,
        ),
        command=command,
    )


def _coverage(events: Mapping[str, list[dict]], command: str) -> Iterator[Section]:
    for records in events.values():
        for found in (r["coverage"] for r in records if r.get("coverage")):
            rows = [("looked at", found["looked_at"])]
            rows += [("not looked at", gap) for gap in found["not_looked_at"]]
            yield Section(
                "Coverage",
                "What this run cannot have an opinion on.",
                table=Table(("", "what"), rows),
                command=command,
                open_table=True,
            )
            return
