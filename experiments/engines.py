"""The engine as flags and fault have it; it needs no oracle, and nothing of JAX."""

import numpy as np

from experiments import inject
from experiments.align import faults
from experiments.flags import Config, UsageError
from hip_engine.device import Device
from hip_engine.engine import Engine


def open_engine(
    config: Config, fault: faults.Fault | None, device: Device, route, **options
) -> Engine:
    """The engine on a route, as flags and fault have it; `options` of Engine.open go before.

    Raises UsageError for scales of the cache that round, and as Engine.open.
    """
    gemm = "valu" if config.prefill == "steps" else config.prefill
    options = {"kv_dtype": config.kv_dtype, "prefill_gemm": gemm, **options}
    if config.kv_scale:
        options["kv_scale"] = _number_or_path(config.kv_scale)
    options |= fault.options if fault else {}
    options |= {"route": route, "source_patch": inject.kernel_patches(fault)}
    engine = Engine.open(config.model, device, **options)
    scales_L2K = engine.kv_scales_L2K
    if scales_L2K is not None and (np.frexp(scales_L2K)[0] != 0.5).any():
        engine.close()
        raise UsageError(
            f"--kv_scale={config.kv_scale}: no bound is known for scales that round at every use; "
            "give a power of two, or the file that calibrate_kv writes"
        )
    return engine


def _number_or_path(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
