"""Worker: the engine on the emulated device, decoding one sequence. Times are this CPU's."""

from experiments.bench.process import peak_rss_bytes, timed
from hip_engine.device import open_device
from hip_engine.engine import Engine

START = 1
"""The first token; what follows is the engine's own choice."""


def measure(question: dict) -> dict:
    """Keys: model, route, kv_dtype, context, tokens."""
    device = open_device("emulated")
    open_s, engine = timed(
        lambda: Engine.open(
            question["model"],
            device,
            route=question["route"],
            kv_dtype=question["kv_dtype"],
            max_context=question["context"],
            max_rows=1,
        )
    )
    first_s, _ = timed(lambda: engine.generate(START, 1))
    again_s, generated = timed(lambda: engine.generate(START, question["tokens"]))
    return {
        "open_s": open_s,
        "first_token_s": first_s,
        "tokens_per_s": question["tokens"] / again_s,
        "s_per_token": again_s / question["tokens"],
        "launches_per_token": generated.launches_per_token,
        "host_ms_per_token": generated.host_ms_per_token,
        "observed": engine.attest().observed,
        "rss_bytes": peak_rss_bytes(),
    }
