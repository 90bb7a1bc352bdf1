"""The route matrix: what every other route answers, found out beside the judge.

The other routes need nothing but the oracle's tokens, so they run in a process of their own while
this one captures and judges; on a GPU, too, a capture bears no second stream of calls beside it.
"""

import contextlib
import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from experiments import inject, opening
from experiments.align import faults
from experiments.align.report import RouteResult
from experiments.alignment import PromptResult, not_attested
from experiments.flags import Config
from experiments.reference import Reference
from hip_engine import routes
from hip_engine.attestation import Attestation
from hip_engine.device import open_device
from hip_engine.engine import Engine
from hip_engine.errors import DeviceFault, EngineError, RouteNotBuilt
from hip_engine.kv_types import KV_TYPES


@dataclass(frozen=True)
class RouteRun:
    """The two top-1 tokens of one prompt on one route, and what decode and prefill executed."""

    prefill_last_top1: int
    decode0_top1: int
    attestation: Attestation
    prefill: Attestation


@dataclass(frozen=True)
class Prompt:
    """What a route is fed: the prompt, and the oracle's token after it."""

    name: str
    prompt_ids: tuple[int, ...]
    next_id: int


class ProcessDied(Exception):
    """The process of the other routes ended before it answered."""


Answers = dict[tuple[routes.Route, str], RouteRun | EngineError]
"""By route and prompt."""


def run_route(engine: Engine, prompt: Prompt) -> RouteRun:
    """The prompt in one prefill, then a decode step on the oracle's token; no taps."""
    engine.reset()
    prefill_last = engine.prefill(prompt.prompt_ids)[-1]
    decode0 = engine.step(prompt.next_id)
    attestations = engine.attest(), engine.attest("prefill")
    return RouteRun(prefill_last.top1, decode0.top1, *attestations)


def all_routes(engine: Engine, kv_dtype: str) -> Iterator[tuple[str, routes.Route | None, str]]:
    """Every kernel x matmul combination: its name, the route it stands for if any, and why."""
    for words in itertools.product(routes.KERNEL_WORDS, routes.MATMUL_WORDS):
        wanted = routes.Route(*words)
        try:
            chosen, reason = routes.resolve(wanted, KV_TYPES[kv_dtype], engine.config)
        except RouteNotBuilt as lacking:
            yield str(wanted), None, str(lacking)
        else:
            yield str(wanted), chosen, reason


@contextlib.contextmanager
def others_beside(
    config: Config, fault: faults.Fault | None, engine: Engine, references: Sequence[Reference]
) -> Iterator[Callable[[], Answers]]:
    """Starts the routes that `engine` is not; yields what waits for their answers.

    That raises ProcessDied if there will be none. The process is ended with the body.
    """
    possible = (route for _, route, _ in all_routes(engine, config.kv_dtype) if route)
    chosen = [route for route in dict.fromkeys(possible) if route != engine.route]
    prompts = [
        Prompt(r.prompt, r.token_ids[: r.prompt_tokens], r.token_ids[r.prompt_tokens])
        for r in references
    ]
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    name = fault.name if fault else None
    process = spawn.Process(target=_answer, args=(theirs, config, name, chosen, prompts))

    def answers() -> Answers:
        try:
            return ours.recv()
        except EOFError:
            process.join()
            raise ProcessDied(f"its process ended with exit code {process.exitcode}") from None

    process.start()
    theirs.close()
    try:
        yield answers
    finally:
        process.kill()
        process.join()
        ours.close()


def _answer(
    answers: Connection,
    config: Config,
    fault_name: str | None,
    chosen: list[routes.Route],
    prompts: list[Prompt],
) -> None:
    """In the process beside. A route that is refused or faults is an answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other process's to handle.
    fault = faults.find(fault_name) if fault_name else None
    found: Answers = {}
    with inject.host_patch(fault):
        device = open_device(config.device)
        for route in chosen:
            try:
                engine = opening.open_engine(config, fault, device, route)
            except EngineError as refusal:
                found |= {(route, prompt.name): refusal for prompt in prompts}
                continue
            for prompt in prompts:
                try:
                    found[route, prompt.name] = run_route(engine, prompt)
                except EngineError as error:
                    found[route, prompt.name] = error
            engine.close()
    answers.send(found)


def rows(
    config: Config, engine: Engine, results: dict[str, PromptResult], answers: Callable[[], Answers]
) -> Iterator[RouteResult]:
    """All nine combinations; a route that several names stand for was run once."""
    try:
        ran, died = answers(), ""
    except ProcessDied as death:
        ran, died = {}, str(death)
    ran |= {(engine.route, prompt): _as_route_run(result) for prompt, result in results.items()}
    for name, chosen, why in all_routes(engine, config.kv_dtype):
        if chosen is None:
            yield RouteResult(name, status="not possible", note=why)
            continue
        for prompt, result in results.items():
            if run := ran.get((chosen, prompt)):
                yield _row(name, chosen, why, run, result.reference)
            else:
                yield RouteResult(name, prompt, status="not run", note=died)


def _as_route_run(result: PromptResult) -> RouteRun:
    last = result.reference.prompt_tokens - 1
    seen = result.run.attestation  # of every token, the prompt's too: they were fed one by one
    return RouteRun(*result.run.top1_T[last : last + 2], seen, seen)


def _row(
    name: str,
    chosen: routes.Route,
    why: str,
    ran: RouteRun | EngineError,
    reference: Reference,
) -> RouteResult:
    if isinstance(ran, EngineError):
        status = "device fault" if isinstance(ran, DeviceFault) else "refused"
        return RouteResult(name, reference.prompt, status=status, note=str(ran))
    tokens = ran.prefill_last_top1, ran.decode0_top1
    seen = ran.attestation
    if not_attested(str(chosen), seen):
        status = f"not attested as {chosen}"
    else:
        status = "ok" if tokens == reference.expected else "token differs"
    prompt_by = ran.prefill.observed
    notes = ["" if name == str(chosen) else why]
    notes.append(f"the prompt by {prompt_by} kernels" if prompt_by != seen.observed else "")
    note = "; ".join(filter(None, notes))
    return RouteResult(name, reference.prompt, seen.observed, *tokens, status, note)
