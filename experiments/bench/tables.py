"""The answers of a benchmark as tables of text."""

import re

GiB = 2**30


def progress(name: str, answer: dict) -> None:
    """One line as soon as a measurement is made."""
    print(f"{name}: {answer.get('failed') or _gist(answer)}", flush=True)


def _gist(answer: dict) -> str:
    shown = {k: v for k, v in answer.items() if not isinstance(v, (list, dict))}
    text = ", ".join(
        f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()
    )
    extra = {k: answer[k] for k in ("decode", "statuses", "unclean") if k in answer}
    return f"{text} {extra or ''}"


def text(found: dict[str, dict]) -> str:
    """Every table for which there is an answer."""
    made = {name: answer for name, answer in found.items() if "failed" not in answer}
    parts = [_peers(made), _passes(made), _torch(made), _judged(made)]
    return "\n\n".join(part for part in parts if part)


def _peers(found: dict[str, dict]) -> str:
    rows = []
    for name, ours in found.items():
        if not (match := re.fullmatch(r"(.*) ours (cold|warm)", name)):
            continue
        theirs = found.get(f"{match[1]} transformers {match[2]}")
        again = ours["passes"][0]["again"]["total_s"]
        row = [f"{match[1]} {match[2]}", f"{ours['total_s']:.1f}", f"{again:.2f}"]
        row.append(f"{ours['rss_bytes'] / GiB:.2f}")
        if theirs:
            row += [f"{theirs['total_s']:.1f}", f"{theirs['again_s']:.2f}"]
            row.append(f"{theirs['rss_bytes'] / GiB:.2f}")
            for key in ("total_s", "rss_bytes"):
                row.append(f"{theirs[key] / ours[key]:.2f}")
            row.append(f"{theirs['again_s'] / again:.2f}")
        rows.append(row)
    heads = ["model, process", "ours s", "2nd pass s", "peak GiB", "transformers s", "2nd pass s"]
    heads += ["peak GiB", "time x", "memory x", "2nd pass x"]
    title = "From GGUF file to a tensor a layer and logits (x: transformers over ours)"
    return aligned(title, heads, rows)


def _passes(found: dict[str, dict]) -> str:
    rows, notes = [], []
    for name, answer in found.items():
        if "passes" not in answer or "ours" in name or "rate_flops" not in answer:
            continue
        if name.endswith("torch"):
            continue
        rate = answer["rate_flops"]
        for one in answer["passes"]:
            again, layers = one["again"], one["again"]["layer_s"]
            busy = one["flop"] / again["total_s"]
            peak = one["device_bytes"] or one["rss_bytes"]
            row = [name, one["tokens"], "resident" if one["resident"] else "streamed"]
            row += [f"{one['first_s']:.2f}", f"{again['total_s']:.3f}"]
            row += [f"{1e3 * sorted(layers)[len(layers) // 2]:.2f}", f"{1e3 * max(layers):.2f}"]
            row += [f"{1e3 * again['head_s']:.1f}", f"{again['to_host_s']:.2f}"]
            row += [f"{busy / 1e12:.2f}", f"{100 * busy / rate:.0f} %"]
            row += [_seconds(one, "products_s")]
            row += [_ratio(again["total_s"], one.get("products_s"))]
            row += [_seconds(one, "tapped_s"), _seconds(one, "beside_s")]
            row += [_ratio(one.get("tapped_s"), one.get("beside_s"))]
            row += [f"{peak / GiB:.2f}", "yes" if one["bit_equal"] else "NO"]
            rows.append(row)
        decode = answer.get("decode")
        speed = f", decode {decode['tokens_per_s']:.1f} tokens/s" if decode else ""
        notes.append(f"{name}: matrix rate {rate / 1e12:.2f} TFLOP/s on {answer['device']}{speed}")
    heads = ["model", "T", "weights", "first s", "again s", "layer ms", "worst ms", "head ms"]
    heads += ["to host s", "TFLOP/s", "of rate", "products s", "x products"]
    heads += ["tapped s", "products beside s", "tapped x", "peak GiB", "bit-equal"]
    return "\n".join([aligned("The oracle, layer by layer", heads, rows), *notes]) if rows else ""


def _seconds(one: dict, key: str) -> str:
    return f"{one[key]:.1f}" if key in one else "-"


def _ratio(seconds: float | None, products_s: float | None) -> str:
    """Against the products with weights alone."""
    return "-" if seconds is None or products_s is None else f"{seconds / products_s:.2f}"


def _torch(found: dict[str, dict]) -> str:
    rows = []
    for name, answer in found.items():
        if not name.endswith("torch"):
            continue
        for one in answer["passes"]:
            row = [name, one["tokens"], f"{one['first_s']:.2f}", f"{one['total_s']:.3f}"]
            row += [f"{answer['decode']['tokens_per_s']:.1f}"]
            row += [f"{answer['rate_flops'] / 1e12:.2f}"]
            row.append(f"{answer.get('device_bytes', 0) / GiB:.1f}")
            rows.append(row)
    heads = ["plain torch", "T", "first s", "again s", "decode/s", "matrix TFLOP/s", "peak GiB"]
    return aligned("Plain torch, weights resident", heads, rows)


def _judged(found: dict[str, dict]) -> str:
    lines = []
    for name, answer in found.items():
        if not name.startswith("judge"):
            continue
        _, precision, device = name.split()
        runs = [found.get(f"trace {precision} {device} {run}", {}) for run in (1, 2)]
        equal = runs[0].get("digest") == runs[1].get("digest")
        weights = answer["weights"] == runs[0].get("weights")
        lines.append(
            f"{precision} on {device} judged on the CPU: {answer['statuses']}, worst error "
            f"{answer['worst']:.3g} x its floor at {answer['where']}; two processes bit-equal: "
            f"{equal}; decoded weights bit-equal to the CPU's: {weights}"
        )
        lines += answer["unclean"]
    return "\n".join(lines)


def aligned(title: str, heads: list[str], rows: list[list]) -> str:
    if not rows:
        return ""
    lines = [[str(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(len(heads))]
    shown = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=False)) for line in lines]
    return "\n".join([title, *shown])


def engine(found: dict[str, dict]) -> str:
    """The engine on the emulated device."""
    rows = []
    for name, one in found.items():
        if "failed" in one:
            continue
        row = [name, one["observed"], f"{one['tokens_per_s']:.2f}", f"{one['s_per_token']:.3f}"]
        row += [one["launches_per_token"], f"{one['host_ms_per_token']:.2f}"]
        row += [f"{one['open_s']:.1f}", f"{one['first_token_s']:.2f}"]
        rows.append([*row, f"{one['rss_bytes'] / GiB:.2f}"])
    heads = ["model, route", "observed", "tokens/s", "s/token", "launches", "host ms/token"]
    heads += ["open s", "first token s", "peak GiB"]
    return aligned("Decode on the emulated device (times of this CPU)", heads, rows)
