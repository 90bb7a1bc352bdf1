"""A page as one HTML file that needs no network: plots, data, script and style inside."""

import json
import os
from pathlib import Path

import jinja2
import vl_convert

from experiments.align import records
from experiments.align.errors import RecordError
from experiments.report import figures
from experiments.report.page import Page

HERE = Path(__file__).resolve().parent
LIMIT_BYTES = 5_000_000


def _vega() -> str:
    """Vega, Vega-Lite and vega-embed in one script; bundling takes seconds, so it is kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "greta-jax"
    kept = cache / f"vega-{vl_convert.__version__}.js"
    if kept.is_file() and (script := kept.read_text(encoding="utf-8")):
        return script
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    script = script.replace("</script", r"<\/script")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        records.write_whole(kept, script)
    except (OSError, RecordError):
        return script
    return script


def _palette(column: int) -> str:
    return "".join(f"--{name}:{pair[column]};" for name, pair in figures.PALETTE.items())


def _data(page: Page) -> str:
    """What the script reads, safe inside a script element."""
    drawn = [s.figure for s in page.sections if s.figure]
    heads = figures.heat_map([], ("position", []), ("head", []), ("position", ""), parts=False)
    by_site = figures.heat_map([], ("head", []), ("site", []), ("head or block", ""), parts=False)
    data = {
        "figures": {
            f.name: {"spec": f.spec, "axes": f.axes, "opens": f.opens, "detail": f.detail}
            for f in drawn
        },
        "details": dict(page.details),
        "templates": {"heads": heads, "sites": by_site},
        "absent": figures.ABSENT,
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", r"\u003c").replace("\u2028", r"\u2028")


def render(page: Page) -> str:
    """The whole file as text."""
    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.jinja").render(
        page=page,
        light=_palette(0),
        dark=_palette(1),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
        vega=_vega() if any(s.figure for s in page.sections) else "",
        data=_data(page),
    )


def write(path: Path, page: Page) -> Path:
    """Writes the file whole. Raises RecordError."""
    records.write_whole(path, render(page))
    return path
