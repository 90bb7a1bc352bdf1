"""Judges any engine's trace offline: tensors in safetensors or npz, named by its own names.

--got is a folder with trace.json (model_sha256, prompt_sha256, token_ids; `precision` if known) and
tensor files: one a run, a layer or a step. A map (YAML) says which site each name is, its dims and
dtype. Where an op's inputs were captured, its own error is told apart from what it inherited, and
divided by what rounding may do there at the declared precision. Traces that were cut off are judged
up to the cut, and are never a pass.

Examples:
  python -m experiments.align --got=out/trace --map=hf                   transformers
  python -m experiments.align --got=out/trace --map=ggml --layers=0,1    llama.cpp, two layers
  python -m experiments.align --got=out/trace --map=mine.yaml --points=attn.out,resid.out
  python -m experiments.align --ref=out/p4_sys/ref --got=out/p4_sys/got  two stored traces

Exit codes: 0 pass; 1 an error above its floor; 2 no trace, another model or other tokens; 3 cut
off, inputs missing, vacuous; 4 the oracle failed its own check.
"""

from absl import flags as absl_flags

from experiments import flags

REF = (absl_flags.DEFINE_string, "ref", "oracle", "`oracle`, or a stored trace in our own names.")
GOT = (absl_flags.DEFINE_string, "got", "", "Folder of the trace to judge.")
MAP = (absl_flags.DEFINE_string, "map", "sites", "sites, hf, ggml, greta, or a YAML file.")
MORE = (REF, GOT, MAP)


def main(config: flags.Config, values: absl_flags.FlagValues) -> int:
    flags.configure_jax()
    from experiments import offline, outcome
    from experiments.progress import Clock

    clock = Clock(quiet=config.quiet)
    own = {name: values[name].value for _, name, *_ in MORE}
    return outcome.publish(offline.judge("align", config, own, clock), clock)


def run(argv: list[str]) -> int:
    return flags.run(main, __doc__, ["align", *argv[1:]], MORE)
