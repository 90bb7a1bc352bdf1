"""The figures of a page as PNG and SVG, in the light palette, for papers."""

import json
import re
from pathlib import Path

import vl_convert

from experiments.align import records
from experiments.align.errors import RecordError
from experiments.report import figures
from experiments.report.page import Page

WIDTH = 760
PNG_SCALE = 2


def literal(spec: dict, width: int = WIDTH) -> dict:
    """The spec with colours and a width of its own instead of a page's."""
    text = json.dumps(spec)
    text = re.sub(r"var\(--([a-z0-9-]+)\)", lambda m: figures.PALETTE[m[1]][0], text)
    return {**json.loads(text), "width": width, "background": figures.PALETTE["paper"][0]}


def variants(name: str, spec: dict) -> dict[str, dict]:
    """A figure that lets its reader choose local or propagated errors becomes two."""
    if not any(p["name"] == "part" and "bind" in p for p in spec.get("params", ())):
        return {name: spec}
    found = {}
    for part in ("local", "propagated"):
        params = [
            {"name": "part", "value": part} if p["name"] == "part" else p for p in spec["params"]
        ]
        found[f"{name}_{part}"] = {**spec, "params": params}
    return found


def write(folder: Path, page: Page) -> list[Path]:
    """Every figure of the page as NAME.svg and NAME.png. Raises RecordError."""
    records.writable_dir(folder)
    written = []
    for section in page.sections:
        if not section.figure:
            continue
        for name, spec in variants(section.figure.name, section.figure.spec).items():
            fixed = literal(spec)
            svg, png = folder / f"{name}.svg", folder / f"{name}.png"
            records.write_whole(svg, vl_convert.vegalite_to_svg(fixed))
            try:
                png.write_bytes(vl_convert.vegalite_to_png(fixed, scale=PNG_SCALE))
            except OSError as error:
                raise RecordError(f"cannot write {png}: {error.strerror}") from error
            written += [svg, png]
    return written
