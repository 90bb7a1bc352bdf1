"""Determinism over prompts, runs and threads."""

from collections.abc import Iterator

from experiments import fingerprints
from experiments.align import report
from experiments.fingerprints import Fingerprint, HashingDevice
from experiments.flags import EXIT_FAIL, EXIT_INCONCLUSIVE, Config
from experiments.observed_device import ObservedDevice
from experiments.opening import Opened, opened
from experiments.outcome import Outcome
from experiments.progress import Clock
from experiments.reference import tokenise
from hip_engine.device import Device, open_device
from hip_engine.errors import DeviceFault
from hip_engine.gfx942.device import EmulatedDevice

THREADS = (1, 2)


def run(config: Config, runs: int, clock: Clock) -> Outcome:
    outcome = Outcome("determinism", config, {"runs": str(runs)} if runs != 2 else {})
    with opened(config, clock) as both:
        for prompt in config.prompt:
            found = []
            try:
                for name, device in _devices(config, runs):
                    with clock.stage("runs", f"{prompt}: {name}"):
                        found.append(_run_one(outcome, both, prompt, name, device))
            except DeviceFault as error:
                outcome.reasons.append((EXIT_FAIL, f"device fault: {prompt}: {error}"))
                continue
            _judge(outcome, prompt, found)
    outcome.sure = (
        f"{runs} runs on each of {THREADS} threads of one machine; a race that never showed in "
        "them is not excluded (the race sanitizer looks for those)"
    )
    return outcome


def _devices(config: Config, runs: int) -> Iterator[tuple[str, ObservedDevice]]:
    """A fresh device for each run; the last is not watched."""

    def fresh(threads: int) -> Device:
        return (
            EmulatedDevice(threads) if config.device == "emulated" else open_device(config.device)
        )

    for threads in THREADS:
        for number in range(runs):
            plural = "s" if threads > 1 else ""
            yield f"run {number + 1}, {threads} thread{plural}", HashingDevice(fresh(threads))
    yield "a run that is not watched", ObservedDevice(fresh(max(THREADS)))


def _run_one(outcome: Outcome, both: Opened, prompt: str, name: str, device) -> Fingerprint:
    ids = tokenise(both.oracle, prompt, both.config.max_tokens)
    # A cache no longer than the run: what every launch wrote of it is looked for.
    engine = both.engine(device=device, max_context=len(ids) + both.config.max_tokens)
    outcome.facts |= both.facts(engine)
    found = fingerprints.of(name, engine, device, ids, both.config.max_tokens)
    engine.close()
    return found


def _judge(outcome: Outcome, prompt: str, found: list[Fingerprint]) -> None:
    ref, *others = found
    watched = [one for one in found if one.symbols]
    for one in others:
        if text := fingerprints.first_difference(ref, one):
            outcome.reasons.append((EXIT_FAIL, f"{prompt}: {text}"))
    for one in found:
        for (position, layer, site), digest in one.tensors.items():
            place = {"position": position, "layer": layer, "site": site, "sha256": digest}
            outcome.events.append({"event": "tensor", "prompt_id": prompt, "run": one.name} | place)
    rows = _by_kernel(watched)
    outcome.tables.append(report.table_kernels(prompt, rows))
    for symbol, launches, apart, several in rows:
        outcome.events.append(
            {"event": "kernel", "prompt_id": prompt, "symbol": symbol, "launches": launches}
            | {"launches_that_differ": apart, "launches_of_several_workgroups": several}
        )
    distinct = len(set(ref.tensors.values()))
    outcome.lines.append(
        f"{prompt}: {len(found)} runs, {len(ref.tensors)} tensors each ({distinct} distinct), "
        f"{sum(ref.symbols.values())} launches of {len(ref.symbols)} kernels; tokens {ref.tokens}"
    )
    if len(watched) < len(found) - 1:
        text = "this device does not report what kernels write: tensors alone were compared"
        outcome.reasons.append((EXIT_INCONCLUSIVE, f"{prompt}: {text}"))
    elif not any(several for *_, several in rows):
        text = "vacuous: no launch had several workgroups, so threads changed nothing"
        outcome.reasons.append((EXIT_INCONCLUSIVE, f"{prompt}: {text}"))
    if distinct < 2:
        outcome.reasons.append((EXIT_INCONCLUSIVE, f"{prompt}: vacuous: nothing distinct"))


def _by_kernel(watched: list[Fingerprint]) -> list[tuple[str, int, int, int]]:
    """Symbol, launches, those of which any run wrote other bytes, those of several workgroups."""
    launches = [[e for e in one.events if e.kind == "launch"] for one in watched]
    counted: dict[str, list[int]] = {}
    for same in zip(*launches, strict=False):
        entry = counted.setdefault(same[0].name, [0, 0, 0])
        entry[0] += 1
        entry[1] += len({event.digest for event in same}) > 1
        entry[2] += same[0].workgroups > 1
    return [(symbol, *entry) for symbol, entry in sorted(counted.items())]
