"""The page of an alignment (b3_20 and its kin): from its run file, records and maps."""

import re
from collections.abc import Iterator

from experiments.align import records, sites
from experiments.report import error_sections, evidence_sections, judge_sections, maps
from experiments.report.detail import payload
from experiments.report.page import Page, Section, Table, number, tone
from experiments.report.run_file import RunFile

ANSWERS = {
    0: "The engine agrees with the oracle at every tensor that was judged.",
    1: "Something is wrong beyond what rounding can do.",
    2: "The run was refused: its input was wrong.",
    3: "Nothing wrong was found, but something that had to be shown was not shown.",
    4: "The oracle failed its own check, so nothing else here can be trusted.",
}


def page(run: RunFile) -> Page:
    """Raises RecordError if the run's own files cannot be read."""
    loaded = {p["prompt"]: maps.load(run.folder / p["maps"]) for p in run.prompts if p.get("maps")}
    events = {
        p["prompt"]: list(records.read(run.folder / p["records"]))
        for p in run.prompts
        if p.get("records")
    }
    sections: list[Section] = []
    for prompt, found in loaded.items():
        repeat = for_prompt(run.command, prompt)
        sections += error_sections.sections(prompt, found, repeat, prompts=len(loaded))
    sections += judge_sections.sections(events, run.command)
    sections += _tables(run)
    sections += evidence_sections.sections(run, loaded, events)
    order = [*loaded, *events]
    sections.sort(key=lambda s: order.index(s.about) if s.about else len(order))
    details = {prompt: payload(found, len(loaded)) for prompt, found in loaded.items()}
    return Page(
        title=run.experiment,
        verdict=run.verdict,
        tone=tone(run.exit_code),
        sentences=_sentences(run, events),
        facts=_facts(run),
        sections=[*_divergences(run, events), *sections],
        command=run.command,
        details=details,
    )


def _sentences(run: RunFile, events: dict[str, list[dict]]) -> list[str]:
    """The answer first; where no tensor was judged, the run's own first line is one."""
    if run.prompts or run.exit_code or not run.lines:
        return [_answer(run, events), *run.lines]
    return run.lines


def _answer(run: RunFile, events: dict[str, list[dict]]) -> str:
    """What the verdict means, in one sentence: the first divergence if there is one."""
    for found in events.values():
        for first in (record.get("first_divergence") for record in found[-1:]):
            if run.exit_code == 1 and first:
                where = sites.name(first["layer"], first["site"])
                return f"{where} is wrong, first at position {first['position']}: {_times(first)}."
    return ANSWERS.get(run.exit_code, "")


def _times(first: dict) -> str:
    ratio = first.get("local_over_floor")
    if not isinstance(ratio, (int, float)):
        return first["verdict_reason"]
    return f"its own error is {number(ratio)} times what rounding can do"


def for_prompt(command: str, prompt: str) -> str:
    """The same command for one prompt alone."""
    return f"{re.sub(r' --prompt=[^ ]*', '', command)} --prompt={prompt}"


def _facts(run: RunFile) -> list[tuple[str, str]]:
    names = {
        "device": "device",
        "route_resolved": "route",
        "injected_fault": "injected fault",
        "commit": "commit",
        "model_sha256": "model sha256",
        "code_object_sha256": "code object sha256",
    }
    found = [(label, _short(run.facts[key])) for key, label in names.items() if run.facts.get(key)]
    return [*found, ("seconds", f"{run.seconds_total:.1f}")]


def _short(value: object) -> str:
    """The first digits of a hash; the records hold all of them."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,}", r"\1", str(value))


def _divergences(run: RunFile, events: dict[str, list[dict]]) -> Iterator[Section]:
    """One row for each prompt whose summary names a first divergence."""
    rows = []
    for prompt, found in events.items():
        summary = next((record for record in found if record["event"] == "summary"), {})
        if first := summary.get("first_divergence"):
            rows.append(_divergence_row(prompt, first))
    if not rows:
        return
    columns = ("prompt", "layer", "site", "position", "local / floor", "at", "clean before")
    yield Section(
        "First divergence",
        "The first tensor, in dataflow order over positions and layers, that its own operation "
        "made wrong: its inputs as the engine really had them do not explain it.",
        table=Table((*columns, "verdict"), rows, {row[-1]: "bad" for row in rows}),
        command=run.command,
        open_table=True,
    )


def _tables(run: RunFile) -> Iterator[Section]:
    """The tables that the terminal shows."""
    for table in run.more.get("tables", []):
        drawn = Table(table["columns"], table["rows"], table["tones"])
        yield Section(table["title"], "", table=drawn, command=run.command, open_table=True)


def _divergence_row(prompt: str, first: dict) -> tuple:
    ratio = first.get("local_over_floor")
    ratio = number(ratio) if isinstance(ratio, (int, float)) else str(ratio)
    clean = f"{first['clean_before']} of {first['judged_before']}"
    place = first["layer"], first["site"], first["position"]
    return prompt, *place, ratio, str(first.get("local_over_floor_at")), clean, first["verdict"]
