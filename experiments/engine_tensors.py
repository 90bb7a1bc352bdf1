"""What the engine holds at every site of one prompt, for a study to measure beside its policies."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments import inject
from experiments.align import faults, sites
from experiments.engines import open_engine
from experiments.flags import Config
from hip_engine.device import open_device
from hip_engine.taps import Taps

Place = tuple[int, str]
"""Layer and site."""


def of(config: Config, token_ids: Sequence[int]) -> tuple[Mapping[Place, np.ndarray], Mapping]:
    """All tokens of every place that the engine stores, logits too; and its precision by site.

    With --inject_fault the engine has that fault.
    """
    fault = faults.find(config.inject_fault) if config.inject_fault else None
    with inject.host_patch(fault):
        engine = open_engine(config, fault, open_device(config.device), config.route)
        steps = engine.prefill(token_ids, Taps.of(engine.sites))
        engine.close()
    found = {}
    for place, last in steps[-1].taps.items():
        grows = sites.SHAPES[place[1]].startswith("S")
        found[place] = last if grows else np.concatenate([step.taps[place] for step in steps])
    return found, engine.precision
