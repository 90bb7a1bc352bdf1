"""The score of the tester: faults that are really injected, and decoys that must not fire."""

import multiprocessing
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace

from rich.console import Console
from rich.table import Table

from experiments import flags, outcome, session
from experiments.align import divergence, faults, records, report, sites
from experiments.align.errors import AlignError
from experiments.align.faults import Fault
from experiments.alignment import Alignment
from experiments.flags import EXIT_FAIL, EXIT_PASS, EXIT_USAGE, Config
from experiments.progress import Clock
from experiments.revision import commit
from greta_jax.errors import OracleError
from hip_engine.errors import EngineError


@dataclass(frozen=True)
class Score:
    """One injection. `named` is what the run named, right or wrong; `said` that the words of a
    refusal name it instead. `ok` is what a fault needs: detected, placed, and no wrong name; of a
    decoy, that nothing fired."""

    name: str
    decoy: bool
    detected: bool
    placed: bool
    named: str
    named_right: bool
    named_wrong: bool
    said: bool
    seconds: float
    seen: str

    @property
    def ok(self) -> bool:
        found = self.detected and self.placed and not self.named_wrong
        return not self.detected if self.decoy else found


def score(config: Config, fault: Fault, references: dict) -> Score:
    """Runs with one fault. `references` are the oracle's, shared between runs of a sound oracle."""
    start = time.perf_counter()
    injected = replace(config, inject_fault=fault.name)
    found, status, named, seen = None, "", "", ""
    try:
        alignment = session.run(
            injected, Clock(quiet=True), False, {} if fault.of_another_reference else references
        )
    except (EngineError, OracleError, AlignError) as refusal:
        code, seen = EXIT_USAGE, f"refused: {refusal}"
    except Exception as crash:  # A fault may break anything, and a crash is no detection.
        code, seen = None, f"crashed: {type(crash).__name__}: {crash}"
    else:
        code, (found, status, named, seen) = alignment.exit_code, _findings(alignment, fault)
    # A refusal with other words, of a patch that does not compile say, is no detection.
    placed = fault.says in seen if fault.says else found == fault.found_at
    placed = placed and fault.status in ("", status)
    return Score(
        name=fault.name,
        decoy=fault.is_decoy,
        detected=code != EXIT_PASS if fault.is_decoy else code == fault.code,
        placed=placed and not fault.is_decoy,
        named=named,
        named_right=bool(named) and named == fault.named,
        named_wrong=bool(named) and named != fault.named,
        said=bool(fault.says) and placed,
        seconds=time.perf_counter() - start,
        seen=seen,
    )


def _findings(alignment: Alignment, fault: Fault) -> tuple[tuple[int, str] | None, str, str, str]:
    """Place, status, name and a line of text of the first divergence; else the first reason not to
    pass."""
    reasons = alignment.reasons()
    if fault.says:
        return None, "", "", "; ".join(text for _, text in reasons)
    for result in alignment.results.values():
        if first := divergence.first_divergence(result.judgements):
            key, explained = first.first.key, result.explained
            place = f"{sites.name(key.layer, key.site)}, position {key.position}"
            place += f": {first.first.status}"
            texts = explained.sentences() if explained else []
            named = explained.naming.named if explained else ""
            return (key.layer, key.site), first.first.status, named, "; ".join([place, *texts])
    return None, "", "", reasons[0][1] if reasons else ""


def scores(config: Config, names: Iterable[str], jobs: int) -> Iterator[Score]:
    """As they are known, from `jobs` processes. Raises UnknownFault before anything runs."""
    corpus = [faults.find(name) for name in names]
    references: dict = {}
    if jobs == 1 or len(corpus) == 1:
        yield from (score(config, fault, references) for fault in corpus)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, flags.configure_jax) as pool:
        running = [pool.submit(_score_here, config, fault.name) for fault in corpus]
        yield from (done.result() for done in as_completed(running))


_REFERENCES: dict = {}
"""Of a worker process: the oracle's traces, by prompt."""


def _score_here(config: Config, name: str) -> Score:
    return score(config, faults.find(name), _REFERENCES)


def totals(found: list[Score]) -> list[str]:
    """The lines that a reader looks for: shares of the faults, and decoys that fired."""
    real = [one for one in found if not one.decoy]
    count, said = len(real), sum(s.said for s in real)
    named = sum(s.named_right for s in real)
    return [
        f"detected {sum(s.detected for s in real)} of {count}, "
        f"placed {sum(s.placed for s in real)} of {count}, "
        f"named {named + said} of {count} ({named} as a hypothesis, {said} in the words of a "
        f"refusal), named wrongly {sum(s.named_wrong for s in found)}",
        f"decoys fired {sum(s.decoy and s.detected for s in found)} of {len(found) - count}",
    ]


def publish(config: Config, names: Sequence[str], jobs: int) -> int:
    """A line for each as it is known, kept at once; then the table, totals and page."""
    found, console, clock = [], Console(width=report.WIDTH), Clock(quiet=config.quiet)
    shows = not config.quiet and config.output_format == "text"
    path = records.writable_dir(config.out_path) / "mutation_score.jsonl"
    with records.JsonLines(path) as lines, clock.counted("faults", "and decoys") as progress:
        for one in scores(config, names, jobs):
            found.append(one)
            lines.append(_record(one))
            progress(len(found), len(names))
            if shows:
                console.print(f"{one.name}: {one.seconds:.1f} s, {one.seen}", markup=False)
    found.sort(key=lambda one: names.index(one.name))
    failed = [one.name for one in found if not one.ok]
    text = f"not as they must be: {', '.join(failed)}"
    sets, listed = ("all", "quick"), ",".join(names)
    return outcome.publish(
        outcome.Outcome(
            "mutation_score",
            config,
            own={"faults": next((n for n in sets if list(names) == faults.chosen([n])), listed)},
            facts={"commit": commit()},
            lines=totals(found),
            reasons=[(EXIT_FAIL, text)] if failed else [],
            tables=[_table(found)],
            events=[_record(one) for one in found],
        ),
        clock,
    )


def _record(one: Score) -> dict:
    return {"event": "fault"} | asdict(one) | {"ok": one.ok}


def _table(found: list[Score]) -> Table:
    columns = ("lives in", "detected", "placed", "named", "seconds", "as it must be")
    table = Table(title="Faults and decoys", title_justify="left")
    for column in ("fault or decoy", *columns):
        table.add_column(column)
    for one in found:
        called = one.named or ("in words" if one.said else "-")
        cells = (_yes(one.detected), "-" if one.decoy else _yes(one.placed), called)
        name = f"{one.name} (decoy)" if one.decoy else one.name
        table.add_row(
            name, faults.find(one.name).lives_in, *cells, f"{one.seconds:.1f}", _verdict(one.ok)
        )
    return table


def _verdict(ok: bool) -> str:
    return "[green]yes[/]" if ok else "[bold red]no[/]"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
