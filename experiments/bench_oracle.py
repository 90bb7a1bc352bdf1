"""How fast is the oracle, and what does it take? Beside transformers and torch, in one run.

Each measurement is a process of its own. --device=cpu: from GGUF file to a tensor a layer and
logits, ours and transformers', cold and warm; streaming beside its matrix products alone.
--device=gpu: the large model streamed and resident by layer, the share of the device's matrix
rate, decode, a plain torch forward, and the judge on CPU and GPU traces.
The large model is made in --folder by greta_jax.gguf.synthetic, once.

Examples:
  python -m experiments.bench_oracle --shape=1b
  python -m experiments.bench_oracle --device=gpu --shape=llama-3-8b --tokens=205,2048
  python -m experiments.bench_oracle --device=gpu --devices=2 --parts=pass,judge

Exit codes: 0 every measurement was made; 1 one was not; 2 bad flags.
"""

import json
import sys
from pathlib import Path

from absl import flags as absl_flags

from experiments import flags
from experiments.bench import plan, tables
from greta_jax.gguf.synthetic import SHAPES, write

VALUES = absl_flags.FlagValues()
PARTS = {"cpu": ["peers", "pass"], "gpu": ["pass", "torch", "judge"]}
for define, *arguments in (
    (absl_flags.DEFINE_enum, "device", "cpu", list(PARTS), "What JAX computes on."),
    (absl_flags.DEFINE_enum, "shape", "1b", list(SHAPES), "The large model's."),
    (absl_flags.DEFINE_string, "folder", "/tmp", "Where the large model is, or is written."),
    (absl_flags.DEFINE_string, "model", str(flags.DEFAULT_MODEL), "The small one, a GGUF file."),
    (absl_flags.DEFINE_list, "tokens", ["205"], "Lengths of the prompt."),
    (absl_flags.DEFINE_list, "precision", ["fp64", "fp32"], "Of these."),
    (absl_flags.DEFINE_integer, "devices", 1, "Split heads and ffn over so many GPUs."),
    (absl_flags.DEFINE_list, "parts", None, "Out of peers, pass, torch, judge."),
    (absl_flags.DEFINE_multi_enum, "peers", list(plan.PEERS), plan.PEERS, "Models of that part."),
    (absl_flags.DEFINE_string, "json", None, "File for every number."),
):
    define(*arguments, flag_values=VALUES)


def main(argv: list[str]) -> int:
    if (code := flags.parse_own(VALUES, __doc__, argv)) is not None:
        return code
    large = Path(VALUES.folder) / f"{VALUES.shape}.gguf"
    if not large.exists():
        write(large, SHAPES[VALUES.shape], report=None)
    tokens, parts = tuple(map(int, VALUES.tokens)), tuple(VALUES.parts or PARTS[VALUES.device])
    chosen = (VALUES.device, VALUES.model, str(large), VALUES.shape, tokens)
    how = (tuple(VALUES.precision), parts, VALUES.devices, tuple(VALUES.peers))
    asked = plan.Plan(*chosen, *how)
    found = plan.results(asked, tables.progress)
    if VALUES.json:
        Path(VALUES.json).write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(tables.text(found))
    return int(any("failed" in answer for answer in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
