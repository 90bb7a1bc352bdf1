"""Which measurements a benchmark is made of; each result is reported as soon as it is there."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments.bench.process import WorkerFailed, ask

PEERS = ("shipped", "large")
"""Models that are measured beside transformers."""

JUDGED_LAYERS = (0, 1, 2, 31)
JUDGED_TOKENS = 48
TAPPED_LAYERS = {"llama-3-8b": (0, 1, 2, 31), "1b": (0, 1, 2, 15), "small": (0, 1, 2)}


@dataclass(frozen=True)
class Plan:
    """What to measure. `model`: the shipped file, used for traces; `shape`: of the large one."""

    device: str
    model: str
    large: str
    shape: str
    tokens: tuple[int, ...]
    precisions: tuple[str, ...]
    parts: tuple[str, ...]
    devices: int = 1
    peers: tuple[str, ...] = PEERS


def results(plan: Plan, report: Callable[[str, dict], None]) -> dict[str, dict]:
    """Every answer by name; a measurement that failed is its reason."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="bench-oracle-") as scratch:
        for name, worker, question in _questions(plan, Path(scratch)):
            cache = Path(scratch) / question.pop("cache", "shared")
            try:
                found[name] = ask(worker, question, str(cache))
            except WorkerFailed as failed:
                found[name] = {"failed": str(failed)}
            report(name, found[name])
    return found


def _questions(plan: Plan, scratch: Path) -> Iterator[tuple[str, str, dict]]:
    if "peers" in plan.parts:
        yield from _peers(plan)
    if "pass" in plan.parts:
        yield from _passes(plan)
    if "torch" in plan.parts:
        yield from _torch(plan)
    if "judge" in plan.parts:
        yield from _across(plan, scratch)


def _peers(plan: Plan) -> Iterator[tuple[str, str, dict]]:
    """Item by item on the CPU: the oracle cold and warm, transformers twice, for both models."""
    models = {"shipped": ("shipped", plan.model), "large": (plan.shape, plan.large)}
    for label, model in (models[name] for name in plan.peers):
        for precision in plan.precisions:
            common = {"model": model, "precision": precision, "tokens": list(plan.tokens[:1])}
            ours = common | {"device": "cpu", "resident": [False], "rates": False}
            name = f"{label} {precision}"
            cache = f"cache {name}".replace(" ", "-")
            ours["cache"] = cache
            yield f"{name} ours cold", "ours", ours | {"products": False}
            yield f"{name} ours warm", "ours", ours | {"products": False}
            theirs = common | {"side": "transformers"}
            yield f"{name} transformers cold", "bench_torch", theirs
            yield f"{name} transformers warm", "bench_torch", theirs


def _passes(plan: Plan) -> Iterator[tuple[str, str, dict]]:
    """The large model, streamed and resident; on a CPU streamed alone."""
    gpu = plan.device == "gpu"
    for precision in plan.precisions:
        question = {
            "model": plan.large,
            "precision": precision,
            "tokens": list(plan.tokens),
            "device": plan.device,
            "devices": plan.devices,
            "resident": [False, True] if gpu else [False],
            "decode": gpu,
            "again": 2 if gpu else 1,
            "tapped": [] if gpu else list(TAPPED_LAYERS[plan.shape]),
        }
        yield f"{plan.shape} {precision} {plan.device}", "ours", question


def _torch(plan: Plan) -> Iterator[tuple[str, str, dict]]:
    for precision in plan.precisions:
        question = {
            "side": "torch",
            "shape": plan.shape,
            "precision": precision,
            "tokens": list(plan.tokens),
            "torch_device": "cuda" if plan.device == "gpu" else "cpu",
        }
        yield f"{plan.shape} {precision} torch", "bench_torch", question


def _across(plan: Plan, scratch: Path) -> Iterator[tuple[str, str, dict]]:
    """Traces of the shipped model from two processes on the device, judged on the CPU."""
    for precision in plan.precisions:
        question = {
            "model": plan.model,
            "precision": precision,
            "tokens": JUDGED_TOKENS,
            "layers": list(JUDGED_LAYERS),
            "trace": str(scratch / f"{precision}.npz"),
        }
        on_device = question | {"device": plan.device, "devices": plan.devices}
        yield f"trace {precision} {plan.device} 1", "across", on_device
        yield f"trace {precision} {plan.device} 2", "across", on_device
        yield (
            f"judge {precision} {plan.device}",
            "across",
            question
            | {
                "device": "cpu",
                "judge": True,
            },
        )
