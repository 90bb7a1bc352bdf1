"""What else a run shows: the cache, the routes, what really executed, where the time went."""

from collections.abc import Iterator

import numpy as np

from experiments.align.invariants import TOUCHED
from experiments.report import figures
from experiments.report.detail import bins, columns, label
from experiments.report.maps import Maps
from experiments.report.page import Figure, Section, Table, about
from experiments.report.run_file import RunFile

SLOT_TONES = {
    "read": "band-2",
    "written": "local",
    "live, not read": "bad",
    "live, partly read": "doubt",
    "dead, touched": "focus",
    "free": "absent",
}
SEVERITY = ("free", "read", "written", "live, partly read", "dead, touched", "live, not read")
ROUTE_TONES = {"ok": "good", "not built": "absent", "differs": "bad", "not attested": "doubt"}
SLOT_COLUMNS = 64
BOTH_READ = TOUCHED["k read"] | TOUCHED["v read"]
ANY_WRITE = TOUCHED["k written"] | TOUCHED["v written"]


def sections(
    run: RunFile, maps_by_prompt: dict[str, Maps], events: dict[str, list[dict]]
) -> list[Section]:
    """Cache, routes, attestation and time, each only if the run recorded it."""
    found = []
    for prompt, maps in maps_by_prompt.items():
        of_prompt = _cache(prompt, maps, run, events, prompts=len(maps_by_prompt))
        found += about(prompt if len(maps_by_prompt) > 1 else "", of_prompt)
    return [*found, *_routes(run), *_attestation(run, events), *_time(run)]


def _slot_state(bits_K: np.ndarray, slot: int, position: int) -> str:
    """What happened to one slot over all kv heads."""
    if slot > position:
        return "dead, touched" if bits_K.any() else "free"
    if slot < position and (bits_K & ANY_WRITE).any():
        return "dead, touched"
    read = (bits_K & BOTH_READ) == BOTH_READ
    if not read.any():
        return "live, not read"
    if not read.all():
        return "live, partly read"
    return "written" if slot == position and (bits_K & ANY_WRITE).any() else "read"


def _cache(prompt: str, maps: Maps, run: RunFile, events: dict, prompts: int) -> Iterator[Section]:
    layers, _, positions = maps.kv_LKS.shape
    if not layers:
        return
    shown = min(positions, maps.kv_position + 1 + 4)
    runs = bins(shown, columns(SLOT_COLUMNS, prompts))
    values = []
    for layer in range(layers):
        states = [_slot_state(maps.kv_LKS[layer, :, s], s, maps.kv_position) for s in range(shown)]
        for slots in runs:
            state = max((states[s] for s in slots), key=SEVERITY.index)
            values.append({"slot": label(slots), "layer": str(layer), "state": state})
    bad = [v for v in values if v["state"] in SEVERITY[3:]]
    where = f"{bad[0]['state']}: layer {bad[0]['layer']}, slot {bad[0]['slot']}" if bad else ""
    words = f"{len(bad)} cells are wrong; the first is {where}." if bad else "All as it must be."
    layer_order = [str(layer) for layer in range(layers)]
    spec = figures.grid(
        values,
        ("slot", [label(slots) for slots in runs]),
        ("layer", layer_order),
        SLOT_TONES,
        ("slot of the cache", "layer"),
        labelled=False,
    )
    slug = "".join(c if c.isalnum() else "_" for c in prompt)[-40:]
    rows = [
        (r["layer"], r["kv_pos"], r["kv_layer_stride_bytes"])
        + tuple(r.get(f"{kind}_{way}_offset_bytes") for kind in "kv" for way in ("write", "read"))
        + ("ok" if r["kv_invariant_ok"] else r["kv_error"] or "not checked",)
        for r in events.get(prompt, [])
        if r["event"] == "attn_decode_verify"
    ]
    titles = ("layer", "position", "layer stride", "K write", "K read", "V write", "V read")
    yield Section(
        "KV page map",
        f"What decode step {maps.kv_position} did to each slot of the cache, by the addresses that "
        f"its kernels really touched. {words}",
        Figure(f"kv_{slug}", spec, f"Map of {layers} layers by {shown} slots of the KV cache."),
        Table((*titles, "invariants"), rows, {"ok": "good"}),
        run.command,
    )


def _routes(run: RunFile) -> Iterator[Section]:
    if not run.routes:
        return
    tones = {}
    for row in run.routes:
        tones[row["status"]] = _route_state(row["status"])
    matrix: dict[tuple[str, str], list[dict]] = {}
    for row in run.routes:
        matrix.setdefault(tuple(row["route"].split("/")), []).append(row)
    values = []
    for (kernel, matmul), rows in matrix.items():
        states = [_route_state(row["status"]) for row in rows]
        state = max(states, key=list(ROUTE_TONES).index)
        note = "; ".join(f"{r['prompt'] or '-'}: {r['status']} {r['note']}".strip() for r in rows)
        observed = ", ".join(sorted({r["observed"] for r in rows if r["observed"]}))
        cell = {"kernel": kernel, "matmul": matmul, "state": state, "note": note}
        values.append({**cell, "text": f"{state} ({observed})" if observed else state})
    kernels = list(dict.fromkeys(kernel for kernel, _ in matrix))
    matmuls = list(dict.fromkeys(matmul for _, matmul in matrix))
    axes = ("matmul", matmuls), ("kernel", kernels)
    spec = figures.grid(values, *axes, ROUTE_TONES, ("matmul", "kernel"))
    ran = sum(v["state"] not in ("not built",) for v in values)
    good = sum(v["state"] == "ok" for v in values)
    table = Table(
        ("route", "prompt", "observed", "after the prompt", "first decode step", "note", "status"),
        [
            (r["route"], r["prompt"], r["observed"], r["prefill_last_top1"], r["decode0_top1"])
            + (r["note"], r["status"])
            for r in run.routes
        ],
        {status: _TONE_OF_STATE[state] for status, state in tones.items()},
    )
    yield Section(
        "Route matrix",
        f"{ran} of {len(values)} combinations ran, {good} of them with the oracle's tokens. In "
        "brackets is what executed, not what was asked for.",
        Figure("routes", spec, f"Matrix of {len(kernels)} kernels by {len(matmuls)} matmuls."),
        table,
        run.command,
    )


_TONE_OF_STATE = {"ok": "good", "not built": "", "differs": "bad", "not attested": "doubt"}


def _route_state(status: str) -> str:
    if status in ("ok", "not built"):
        return status
    return "not attested" if status.startswith("not attested") else "differs"


def _attestation(run: RunFile, events: dict[str, list[dict]]) -> Iterator[Section]:
    rows = []
    for prompt, found in events.items():
        for record in found:
            if record["event"] == "summary":
                for symbol, launches in sorted(record.get("symbols", {}).items()):
                    mfma = record.get("attention_mfma") if symbol.startswith("attn_") else None
                    rows.append((prompt, symbol, launches, mfma, record["route_observed"]))
    if rows:
        columns = ("prompt", "kernel symbol", "launches", "MFMA in attention", "amounts to")
        yield Section(
            "Attestation",
            "The kernels that executed, counted by symbol, and the route they amount to.",
            table=Table(columns, rows),
            command=run.command,
        )


def _time(run: RunFile) -> Iterator[Section]:
    if run.seconds:
        rest = run.seconds_total - sum(run.seconds.values())
        stages = [*run.seconds.items(), ("everything else", rest), ("total", run.seconds_total)]
        rows = [(stage, float(f"{seconds:.2f}")) for stage, seconds in stages]
        table = Table(("stage", "seconds"), rows)
        yield Section("Time", "Where the time went.", table=table, command=run.command)
