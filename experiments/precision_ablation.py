"""What each precision choice costs: the oracle under many policies at once, against fp64.

A deviation is FIELD=VALUE, then @SITE+SITE, then /LAYER or /FIRST-LAST. Fields: weight, activation,
kv, compute, score, softmax, pv, order, probs, exp. Measured are the error of every site in every
layer, its growth through depth, KL and flips of the next token. Writes precision_ablation.csv,
.jsonl, .html and _run.json to --out_dir.

Examples:
  python -m experiments.precision_ablation                            12 deviations, one at a time
  python -m experiments.precision_ablation --study=by_site --factors=compute=fp16   what needs fp32
  python -m experiments.precision_ablation --factors=pv=fp16/31       fp16 accumulation at layer 31
  python -m experiments.precision_ablation --study=kv_layers --factors=kv=fp8 --kl_budget=1e-3
  python -m experiments.precision_ablation --study=pairs --factors=kv=fp16,probs=fp16,pv=fp16
  python -m experiments.precision_ablation --compare=engine           the engine's errors beside

Exit codes: 0 measured; 2 bad flags or input; 3 nothing was measured.
"""

import sys

from experiments import flags
from experiments.ablation import options


def main(config: flags.Config, values) -> int:
    flags.configure_jax()
    from experiments import engine_cost
    from experiments.ablation import study, terminal
    from experiments.progress import Clock

    own = {name: values[name].value for name in study.Asked.__dataclass_fields__}
    asked = study.Asked(**own | {"factors": tuple(own["factors"])})

    def measure(oracle, prompt, token_ids):
        return engine_cost.measure(config, oracle, token_ids)

    clock = Clock(quiet=config.quiet)
    found = study.run(config, asked, clock, measure)
    return terminal.publish(found, options.command(values), clock)


if __name__ == "__main__":
    sys.exit(flags.run(main, __doc__, more=options.FLAGS))
