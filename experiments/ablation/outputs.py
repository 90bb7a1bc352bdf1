"""What a study leaves: CSV of every tensor, JSONL of every variant, and the run's record."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from experiments.ablation.evaluate import Cost
from experiments.ablation.studies import Summary, worst_by_place
from experiments.align import records

COLUMNS = ("variant", "prompt", "layer", "site", "rms", "max", "signal_rms", "relative_rms")

Costs = Mapping[str, Mapping[str, Cost]]
"""variant -> prompt -> cost."""


def _rows(costs: Costs) -> Iterator[tuple]:
    for variant, by_prompt in costs.items():
        for prompt, cost in by_prompt.items():
            for (layer, site), e in cost.sites.items():
                yield variant, prompt, layer, site, e.rms, e.max, e.signal, e.relative


def write(folder: Path, costs: Costs, summaries: Sequence[Summary]) -> list[Path]:
    """precision_ablation.csv and .jsonl, each whole. Raises RecordError."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_rows(costs))
    table = folder / "precision_ablation.csv"
    records.write_whole(table, text.getvalue())
    lines = folder / "precision_ablation.jsonl"
    with records.JsonLines(lines) as out:
        for summary in summaries:
            out.append({"event": "variant", **asdict(summary)})
        for variant, by_prompt in costs.items():
            for prompt, cost in by_prompt.items():
                tokens = {"kl": cost.kl_T, "flips": cost.flips, "flip_margins": cost.margins}
                out.append({"event": "tokens", "variant": variant, "prompt": prompt, **tokens})
    return [table, lines]


def places(costs: Costs) -> dict[str, list[list]]:
    """variant -> [layer, site, relative rms], the worst over prompts, for the page."""
    return {
        variant: [
            [layer, site, size]
            for (layer, site), size in worst_by_place(list(by_prompt.values())).items()
        ]
        for variant, by_prompt in costs.items()
    }
