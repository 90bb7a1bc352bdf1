"""B3.20: align decode attention with the oracle, token by token and tensor by tensor.

The JAX oracle and the engine's gfx942 machine code run the same tokens; every tensor the engine
stores at the chosen layers is judged against the op replayed in fp64 on the inputs the engine
really had (local error), so that only the op that is wrong is blamed. Prints
  A  attn.out a layer: MAE, max, local and propagated apart, and local error over its floor;
  B  KV-cache invariants from the bytes that decode steps really wrote and read;
  C  the route matrix: top-1 after the prompt and after the first decode step;
then the first divergence, what was clean before it, and the command that repeats it. Writes
b3_20.html, b3_20_<prompt>_run_attn_verify.jsonl and b3_20_matrix_summary.txt to --out_dir.

Examples:
  python -m experiments.b3_20                                  both prompts, four layers
  python -m experiments.b3_20 --prompt=p4_sys --layers=all     every layer
  python -m experiments.b3_20 --points=q,k,v,attn_out,x_out    only these tensors
  python -m experiments.b3_20 --prompt=p6_long --max_tokens=8  a long prompt, more tokens
  python -m experiments.b3_20 --prompt=notes.txt               your own text
  python -m experiments.b3_20 --inject_fault=kv_base_of_layer_0   must fail: layer 1, attn.out
  python -m experiments.b3_20 --output_format=json --figures=out   one record; PNG and SVG
  GRETA_TRACE_ATTN_LAYERS=0,1 python -m experiments.b3_20      GRETA's variables are defaults

Exit codes: 0 pass; 1 an error above its floor, a broken KV invariant or a device fault; 2 bad
flags or input; 3 inconclusive, vacuous or a route not attested; 4 the oracle failed its own check.
"""

import sys

from experiments import flags


def main(config: flags.Config) -> int:
    flags.configure_jax()
    from experiments import results, session
    from experiments.progress import Clock

    clock = Clock(quiet=config.quiet)
    return results.publish("b3_20", session.run(config, clock, bundles="b3_20"), clock)


if __name__ == "__main__":
    sys.exit(flags.run(main, __doc__))
