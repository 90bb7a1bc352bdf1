"""What each precision choice costs: the oracle under many policies at once, against fp64.

A deviation is FIELD=VALUE, then @SITE+SITE, then /LAYER or /FIRST-LAST. Fields: weight, activation,
kv, compute, score, softmax, pv, order, probs, exp. Measured are the error of every site in every
layer, its growth through depth, KL and flips of the next token. A keep_ study searches for the
fewest layers or ops that must stay as --base has them. Writes precision_ablation.csv, .jsonl,
.html and _run.json to --out_dir.

Examples:
  python -m experiments.precision_ablation                            12 deviations, one at a time
  python -m experiments.precision_ablation --study=keep_ops --precision=fp32 --factors=compute=fp16
                                                                      which ops need fp32
  python -m experiments.precision_ablation --factors=pv=fp16/31       fp16 accumulation at layer 31
  python -m experiments.precision_ablation --study=keep_layers --factors=kv=fp8 --base=kv=fp16
                                                                      which layers must stay fp16
  python -m experiments.precision_ablation --study=pairs --factors=kv=fp16,probs=fp16,pv=fp16
  python -m experiments.precision_ablation --compare=engine           the engine's errors beside

Exit codes: 0 measured; 2 bad flags or input; 3 nothing was measured.
"""

import sys
from functools import partial

from experiments import flags
from experiments.ablation import options

MORE = options.FLAGS
UNREAD = (
    *("layers", "points", "prefill", "kv_scale", "save_floors", "check_floors", "save_traces"),
)
ENGINE = ("route", "kv_dtype", "device", "inject_fault")


def main(config: flags.Config, values) -> int:
    flags.configure_jax()
    from experiments import engine_tensors
    from experiments.ablation import study, terminal
    from experiments.progress import Clock

    flags.refuse(config, UNREAD, "every layer and site is measured")
    if values.compare == "none":
        flags.refuse(config, ENGINE, "no engine runs without --compare=engine")
    own = {name: values[name].value for name in study.Asked.__dataclass_fields__}
    asked = study.Asked(**own | {name: tuple(own[name]) for name in ("factors", "base")})
    clock = Clock(quiet=config.quiet)
    found = study.run(config, asked, clock, partial(engine_tensors.of, config))
    return terminal.publish(found, options.command(values), clock)


if __name__ == "__main__":
    sys.exit(flags.run(main, __doc__, more=MORE))
