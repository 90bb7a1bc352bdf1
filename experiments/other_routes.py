"""What the process of the other routes does; it imports no JAX, so that it starts at once."""

import ctypes
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection

from experiments import inject
from experiments.align import faults
from experiments.engines import open_engine
from experiments.flags import Config
from hip_engine import routes
from hip_engine.attestation import Attestation
from hip_engine.device import open_device
from hip_engine.engine import Engine
from hip_engine.errors import EngineError

PR_SET_PDEATHSIG = 1  # prctl(2)


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


Answers = dict[tuple[routes.Route, str], RouteRun | EngineError]
"""By route and prompt."""


def run_route(engine: Engine, prompt: Prompt) -> RouteRun:
    """The prompt in one prefill, then a decode step on the oracle's token; no taps."""
    engine.reset()
    prefill_last = engine.prefill(prompt.prompt_ids)[-1]
    decode0 = engine.step(prompt.next_id)
    attestations = engine.attest(), engine.attest("prefill")
    return RouteRun(prefill_last.top1, decode0.top1, *attestations)


def answer(
    answers: Connection,
    config: Config,
    fault_name: str | None,
    chosen: list[routes.Route],
    prompts: list[Prompt],
) -> None:
    """In the process beside. A route that is refused or faults is an answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other process's to handle.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # Killed, it takes this one along.
    fault = faults.find(fault_name) if fault_name else None
    found: Answers = {}
    with inject.host_patch(fault):
        device = open_device(config.device)
        for route in chosen:
            try:
                engine = open_engine(config, fault, device, route)
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
