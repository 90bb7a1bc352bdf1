"""Where did it go wrong first? From two stored traces alone: no model is run, only its ops.

Walks both traces (`b3_20 --save_traces` writes them) in dataflow order over tokens and layers, and
replays each op in fp64 on the inputs that it really had. The first op whose own error is above its
floor is the culprit; prints it with its neighbours, the pattern of its error, and which of the
known mistakes it is, if one of them reaches the floor.

Examples:
  python -m experiments.b3_20 --prompt=p4_sys --save_traces --out_dir=out
  python -m experiments.localize --ref=out/b3_20_p4_sys/ref --got=out/b3_20_p4_sys/got
  python -m experiments.localize --ref=out/ref --got=out/got --layers=0-3 --points=attn_out

Exit codes: 0 no op is to blame; 1 one is; 2 no traces, another model or other tokens; 3 cut off,
inputs missing, vacuous; 4 the reference does not replay itself.
"""

import sys

from absl import flags as absl_flags

from experiments import align_traces, flags

REF = (absl_flags.DEFINE_string, "ref", "", "The reference: a stored trace in our own names.")
MORE = (REF, align_traces.GOT, align_traces.MAP)


def main(config: flags.Config, values: absl_flags.FlagValues) -> int:
    flags.configure_jax()
    from experiments import offline, outcome
    from experiments.progress import Clock

    own = {name: values[name].value for _, name, *_ in MORE}
    if own["ref"] in ("", offline.ORACLE):
        raise flags.UsageError("--ref=FOLDER is needed: localize runs no model, align does")
    clock = Clock(quiet=config.quiet)
    return outcome.publish(offline.judge("localize", config, own, clock), clock)


if __name__ == "__main__":
    sys.exit(flags.run(main, __doc__, more=MORE))
