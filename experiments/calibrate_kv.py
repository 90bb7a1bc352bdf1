"""Scales of an fp8 KV cache per layer, K or V and kv head, for the engine's kv_scale.

The prompts are run with an fp32 cache; scales are the smallest powers of two at which the largest K
(after RoPE) and V of every head are no larger than fp8's largest number (240). What is larger in
other text saturates: give text like that which will be served. The file names the model that it is
for, and no other takes it.

Examples:
  python -m experiments.calibrate_kv --prompt=p4_sys,p5_ba,p6_long --scales=scales.json

  python -m experiments.b3_20 --kv_dtype=float8_e4m3fnuz --kv_scale=scales.json

and Engine.open(model, device, kv_dtype="float8_e4m3fnuz", kv_scale="scales.json").

Exit codes: 0 written; 1 a device fault; 2 bad flags or input.
"""

import sys

from absl import flags as absl_flags

from experiments import flags

SCALES = (absl_flags.DEFINE_string, "scales", "kv_scales.json", "File to write.")


def main(config: flags.Config, values: absl_flags.FlagValues) -> int:
    flags.refuse(config, ("route", "layers", "points", "kv_dtype"), "all are looked at")
    flags.configure_jax()
    from experiments.progress import Clock
    from experiments.reference import tokenise
    from greta_jax.model import Oracle
    from greta_jax.precision import Policy
    from hip_engine.calibration import calibrate
    from hip_engine.device import open_device

    clock = Clock(quiet=config.quiet)
    oracle = Oracle.open(config.model, Policy.uniform("float32"))
    prompts = [tokenise(oracle, prompt, 0) for prompt in config.prompt]
    with clock.stage("calibration", f"{sum(map(len, prompts))} tokens"):
        found = calibrate(config.model, open_device(config.device), prompts)
    found.write(values.scales)
    low, high = found.scales_L2K.min(), found.scales_L2K.max()
    print(f"{values.scales}: {found.scales_L2K.size} scales from {low:.3g} to {high:.3g}")
    return flags.EXIT_PASS


if __name__ == "__main__":
    sys.exit(flags.run(main, __doc__, more=(SCALES,)))
