"""What an experiment that runs the engine begins with: oracle, device, prompts and the fault."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from experiments import inject
from experiments.align import faults, records, sites
from experiments.engines import open_engine
from experiments.flags import Config, parse_layers
from experiments.progress import Clock
from experiments.reference import Reference, make_reference, tokenise
from experiments.revision import commit
from greta_jax.model import Oracle
from greta_jax.precision import Policy
from hip_engine import kernels, routes, taps
from hip_engine.device import Device, open_device
from hip_engine.engine import Engine
from hip_engine.gfx942 import jit
from hip_engine.kv_types import KV_TYPES

DTYPES = {"fp64": "float64", "fp32": "float32"}


@dataclass(frozen=True)
class Opened:
    """Both sides of one configuration, before any prompt is run."""

    config: Config
    oracle: Oracle
    device: Device
    fault: faults.Fault | None
    layers: tuple[int, ...]
    sites: tuple[str, ...]

    def engine(self, route=None, device: Device | None = None, **options) -> Engine:
        """The engine as the flags ask for it, with a fault's kernels and options."""
        route = route or self.config.route
        return open_engine(self.config, self.fault, device or self.device, route, **options)

    def reference(self, prompt: str) -> Reference:
        """With the sites that an engine may store, or all of them if traces are to be saved."""
        kept = sites.SITES if self.config.save_traces else taps.SITES
        how = self.config.max_tokens, self.layers, kept
        return make_reference(self.oracle, prompt, *how)

    def facts(self, engine: Engine) -> dict:
        return {
            "model_sha256": self.oracle.model_sha256,
            "commit": commit(),
            "code_object_sha256": engine.code_object_sha256,
            "device": self.config.device,
            "route_resolved": str(engine.route),
            "injected_fault": self.config.inject_fault,
        }


@contextlib.contextmanager
def opened(config: Config, clock: Clock) -> Iterator[Opened]:
    """Inside, --inject_fault is in the engine. Bad input raises before anything slow."""
    records.writable_dir(config.out_path)
    fault = faults.find(config.inject_fault) if config.inject_fault else None
    if fault:
        config = replace(config, **fault.run)
    routes.check(routes.Route.parse(config.route), KV_TYPES[config.kv_dtype])
    chosen = sites.resolve(config.points)
    with inject.model_file(fault, config.model) as model:
        config = replace(config, model=model)
        with clock.stage("oracle load"):
            oracle = Oracle.open(model, Policy.uniform(DTYPES[config.precision]))
            layers = parse_layers(config.layers, oracle.config.layers)
            for prompt in config.prompt:
                tokenise(oracle, prompt, config.max_tokens)
        parts = ((kernels, "build", "kernel build"), (jit, "compile_kernel", "translation"))
        with inject.host_patch(fault), clock.watching(parts):
            yield Opened(config, oracle, open_device(config.device), fault, layers, chosen)
