"""The engine's own errors against the fp64 oracle, in the terms of an ablation study."""

from collections.abc import Sequence

import numpy as np

from experiments.ablation.evaluate import Cost, cost_of, site_error
from experiments.align import sites
from experiments.flags import Config
from greta_jax.model import Oracle
from greta_jax.taps import Taps as OracleTaps
from hip_engine.device import open_device
from hip_engine.engine import Engine
from hip_engine.taps import Taps


def measure(config: Config, oracle: Oracle, token_ids: Sequence[int]) -> Cost:
    """One prompt, teacher-forced, every site the engine stores."""
    layers = tuple(range(oracle.config.layers))
    reference = oracle.prefill(token_ids, taps=OracleTaps.everything())
    device = open_device(config.device)
    engine = Engine.open(config.model, device, route=config.route, kv_dtype=config.kv_dtype)
    steps = engine.prefill(token_ids, Taps.of(engine.sites, layers))
    engine.close()
    errors = {}
    for place in steps[-1].taps:
        grows = sites.SHAPES[place[1]].startswith("S")
        rows = steps[-1].taps[place] if grows else np.concatenate([s.taps[place] for s in steps])
        errors[place] = site_error(reference.taps[place], rows)
    return cost_of(errors, reference.logits_TV, np.stack([step.logits_V for step in steps]))
