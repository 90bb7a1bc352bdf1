"""How fast does the emulated engine decode, and what does it take?

Each measurement is a process of its own: the shipped model on every route, and a large model of
random weights (Llama-3-8B's shape in Q4_K_M; made in --folder by greta_jax.gguf.synthetic, once) on
one. Prints tokens a second, kernel launches and the host's own time a token, and peak memory.
Kernels are translated once and kept; a first run says so in its first token. The times are this
CPU's and say nothing of an MI300X: experiments.kernel_evidence models that.

Examples:
  python -m experiments.bench_engine
  python -m experiments.bench_engine --parts=shipped --tokens=64
  python -m experiments.bench_engine --shape=1b --folder=/var/tmp

Exit codes: 0 every measurement was made and attested; 1 one was not; 2 bad flags.
"""

import json
import os
import sys
from pathlib import Path

from absl import flags as absl_flags

from experiments import flags
from experiments.bench import tables
from experiments.bench.process import WorkerFailed, ask
from greta_jax.gguf.synthetic import SHAPES, write
from hip_engine.routes import BUILT

VALUES = absl_flags.FlagValues()
for define, *arguments in (
    (absl_flags.DEFINE_string, "model", str(flags.DEFAULT_MODEL), "The shipped model."),
    (absl_flags.DEFINE_enum, "shape", "llama-3-8b", list(SHAPES), "The large model's."),
    (absl_flags.DEFINE_string, "folder", "/tmp", "Where the large model is, or is written."),
    (absl_flags.DEFINE_integer, "tokens", 32, "Decoded with the shipped model."),
    (absl_flags.DEFINE_integer, "large_tokens", 2, "Decoded with the large one."),
    (absl_flags.DEFINE_integer, "context", 512, "Slots of the cache."),
    (absl_flags.DEFINE_string, "large_route", "auto/auto", "Of the large model."),
    (absl_flags.DEFINE_list, "parts", ["shipped", "large"], "Out of shipped, large."),
    (absl_flags.DEFINE_string, "json", None, "File for every number."),
):
    define(*arguments, flag_values=VALUES)


def main(argv: list[str]) -> int:
    if (code := flags.parse_own(VALUES, __doc__, argv)) is not None:
        return code
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    found = {}
    for name, question in _questions():
        try:
            found[name] = ask("engine", question, root)
        except WorkerFailed as failed:
            found[name] = {"failed": str(failed)}
        tables.progress(name, found[name])
    if VALUES.json:
        Path(VALUES.json).write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(tables.engine(found))
    return int(any("failed" in answer for answer in found.values()))


def _questions():
    common = {"kv_dtype": "float16", "context": VALUES.context}
    if "shipped" in VALUES.parts:
        for route in map(str, BUILT):
            mine = {"model": VALUES.model, "route": route, "tokens": VALUES.tokens}
            yield f"shipped {route}", common | mine
    if "large" in VALUES.parts:
        path = Path(VALUES.folder) / f"{VALUES.shape}.gguf"
        if not path.exists():
            write(path, SHAPES[VALUES.shape], report=None)
        mine = {"model": str(path), "route": VALUES.large_route, "tokens": VALUES.large_tokens}
        yield f"{VALUES.shape} {VALUES.large_route}", common | mine


if __name__ == "__main__":
    sys.exit(main(sys.argv))
