"""One process of a sharded forward, with the arguments of `main`.

Its devices are simulated CPUs. Process 0 writes every tap, the logits of prefill, decode and
stream, and how the cache lies, to OUT.
"""

import os
import sys


def main(model: str, out: str, index: int, processes: int, devices: int, port: int) -> None:
    """Every process runs the same program; jax.distributed joins their devices."""
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    from experiments import flags

    flags.configure_jax()
    import jax
    import numpy as np

    if processes > 1:
        jax.distributed.initialize(f"localhost:{port}", processes, index)
    from greta_jax.model import Oracle
    from greta_jax.precision import Policy
    from greta_jax.stream import stream
    from greta_jax.taps import Taps

    oracle = Oracle.open(model, Policy.fp64(), devices=jax.devices())
    ids = np.random.default_rng(0).integers(0, oracle.config.vocab, 21)
    step = oracle.prefill(ids, Taps.everything())
    found = {f"{layer}|{site}": value for (layer, site), value in step.taps.items()}
    found["decoded"] = oracle.decode(step.cache, 5).logits_TV
    found["streamed"] = stream(oracle, ids).logits_TV
    found["devices_of_cache"] = np.array([len(step.cache.k[0].sharding.device_set)])
    found["rows_a_device"] = np.array([step.cache.k[0].addressable_shards[0].data.shape[1]])
    if index == 0:
        np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
