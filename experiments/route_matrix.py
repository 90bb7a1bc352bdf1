"""The route matrix: what every other route answers, found out beside the judge.

The other routes need nothing but the oracle's tokens, so they run in a process of their own while
this one captures and judges; on a GPU, too, a capture bears no second stream of calls beside it.
"""

import contextlib
import itertools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence

from experiments import other_routes
from experiments.align import faults
from experiments.align.report import RouteResult
from experiments.alignment import PromptResult, not_attested
from experiments.flags import Config
from experiments.other_routes import Answers, Prompt, RouteRun
from experiments.reference import Reference
from hip_engine import routes
from hip_engine.engine import Engine
from hip_engine.errors import DeviceFault, EngineError, RouteNotBuilt
from hip_engine.kv_types import KV_TYPES


class ProcessDied(Exception):
    """The process of the other routes ended before it answered."""


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
    asked = theirs, config, fault.name if fault else None, chosen, prompts
    process = spawn.Process(target=other_routes.answer, args=asked)

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
