"""The score of the tester: faults that are really injected, and decoys that must not fire."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

from rich.console import Console
from rich.table import Table

from experiments import session
from experiments.align import divergence, faults, records, report, sites
from experiments.align.faults import Fault
from experiments.alignment import Alignment
from experiments.flags import EXIT_FAIL, EXIT_PASS, Config
from experiments.progress import Clock
from hip_engine.errors import EngineError


@dataclass(frozen=True)
class Score:
    """One injection. `named` is what the run named, right or wrong; `ok` is what a fault needs:
    detected, placed, and no wrong name; of a decoy, that nothing fired."""

    name: str
    decoy: bool
    detected: bool
    placed: bool
    named: str
    named_right: bool
    named_wrong: bool
    seconds: float
    seen: str

    @property
    def ok(self) -> bool:
        found = self.detected and self.placed and not self.named_wrong
        return not self.detected if self.decoy else found


def score(config: Config, fault: Fault, references: dict) -> Score:
    """Runs with one fault. `references` are the oracle's, shared between runs."""
    start = time.perf_counter()
    injected = replace(config, inject_fault=fault.name)
    found, named, seen = None, "", ""
    try:
        alignment = session.run(injected, Clock(quiet=True), False, references)
    except EngineError as refusal:
        # Any other refusal, a patch that does not compile say, is no detection.
        expected = fault.stops and fault.stops in str(refusal)
        code, seen = (EXIT_FAIL if expected else None), f"refused: {refusal}"
    else:
        code, (found, named, seen) = alignment.exit_code, _findings(alignment)
    placed = fault.stops in seen if fault.stops else found == fault.found_at
    return Score(
        name=fault.name,
        decoy=fault.is_decoy,
        detected=code != EXIT_PASS if fault.is_decoy else code == EXIT_FAIL,
        placed=placed and not fault.is_decoy,
        named=named,
        named_right=bool(named) and named == fault.named,
        named_wrong=bool(named) and named != fault.named,
        seconds=time.perf_counter() - start,
        seen=seen,
    )


def _findings(alignment: Alignment) -> tuple[tuple[int, str] | None, str, str]:
    """Place, name and a line of text of the first divergence; else the first reason not to pass."""
    for result in alignment.results.values():
        if first := divergence.first_divergence(result.judgements):
            key, explained = first.first.key, result.explained
            place = f"{sites.name(key.layer, key.site)}, position {key.position}"
            texts = explained.sentences() if explained else []
            named = explained.naming.named if explained else ""
            return (key.layer, key.site), named, "; ".join([place, *texts])
    reasons = alignment.reasons()
    return None, "", reasons[0][1] if reasons else ""


def scores(config: Config, names: Iterable[str]) -> Iterator[Score]:
    """Raises UnknownFault for a name before anything runs."""
    references: dict = {}
    for fault in [faults.find(name) for name in names]:
        yield score(config, fault, references)


def totals(found: list[Score]) -> list[str]:
    """The lines that a reader looks for: shares of the faults, and decoys that fired."""
    real = [one for one in found if not one.decoy]
    expected = [one for one in real if faults.find(one.name).named]
    count = len(real)
    return [
        f"detected {sum(s.detected for s in real)} of {count}, "
        f"placed {sum(s.placed for s in real)} of {count}, "
        f"named {sum(s.named_right for s in real)} of {count} "
        f"({len(expected)} have a hypothesis), named wrongly {sum(s.named_wrong for s in found)}",
        f"decoys fired {sum(s.decoy and s.detected for s in found)} of {len(found) - count}",
    ]


def publish(config: Config, names: Iterable[str]) -> int:
    """Prints a line for each as it is known, then the table; writes mutation_score.jsonl."""
    found, console = [], Console(width=report.WIDTH)
    path = records.writable_dir(config.out_path) / "mutation_score.jsonl"
    with records.JsonLines(path) as lines:
        for one in scores(config, names):
            found.append(one)
            lines.append(asdict(one) | {"ok": one.ok})
            if not config.quiet:
                console.print(f"{one.name}: {one.seconds:.1f} s, {one.seen}", markup=False)
        lines.append({"event": "totals", "lines": totals(found)})
    console.print(_table(found))
    console.print("\n".join(totals(found)), highlight=False)
    failed = [one.name for one in found if not one.ok]
    print(f"mutation_score: {'FAIL: ' + ', '.join(failed) if failed else 'PASS'}; {path}")
    return EXIT_FAIL if failed else EXIT_PASS


def _table(found: list[Score]) -> Table:
    columns = ("detected", "placed", "named", "seconds", "as it must be")
    table = Table(title="Faults and decoys", title_justify="left")
    for column in ("fault or decoy", *columns):
        table.add_column(column)
    for one in found:
        cells = (_yes(one.detected), "-" if one.decoy else _yes(one.placed), one.named or "-")
        name = f"{one.name} (decoy)" if one.decoy else one.name
        table.add_row(name, *cells, f"{one.seconds:.1f}", _yes(one.ok))
    return table


def _yes(value: bool) -> str:
    return "yes" if value else "no"
