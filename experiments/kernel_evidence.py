"""What can be shown of the kernels' speed on an MI300X without one.

For every attention and weight kernel, at the shapes of Llama-3-8B and 70B (batches of 1, 4 and 64;
contexts of 4k, 32k and 128k): registers, spills, LDS and occupancy from the code object; bytes of
K and V (or weights) read over those needed, the share read 16 bytes a lane, 128-byte lines, loads
in flight and bank conflicts from the emulator's counters; issue clocks from llvm-mca; and the
share of 4.2 and 5.3 TB/s that a model makes of them. The first workgroups of each launch are run,
the rest extrapolated. Nothing printed is a measured MI300X time.

Examples:
  python -m experiments.kernel_evidence
  python -m experiments.kernel_evidence --kv_dtype=float16 --parts=attention --json=evidence.json

Exit codes: 0 every aim is reached; 1 one is not (they are listed); 2 bad flags.
"""

import json
import sys
from pathlib import Path

from absl import flags as absl_flags
from rich.console import Console

from experiments import flags
from experiments.evidence import survey, tables
from experiments.progress import Clock
from hip_engine.errors import EngineError
from hip_engine.kv_types import KV_TYPES

VALUES = absl_flags.FlagValues()
PARTS = ("attention", "products")
WIDTH = 230
for define, *arguments in (
    (absl_flags.DEFINE_multi_enum, "kv_dtype", list(KV_TYPES), list(KV_TYPES), "Cache; repeat."),
    (absl_flags.DEFINE_multi_enum, "parts", list(PARTS), PARTS, "What is looked at; repeat."),
    (absl_flags.DEFINE_string, "json", None, "File for every number."),
    (absl_flags.DEFINE_bool, "quiet", False, "Only what misses an aim."),
):
    define(*arguments, flag_values=VALUES)


def main(argv: list[str]) -> int:
    try:
        if VALUES(argv)[1:]:
            raise absl_flags.Error(f"unexpected argument {VALUES(argv)[1]!r}")
        found = _collect(Clock(VALUES.quiet))
    except (absl_flags.Error, EngineError) as error:
        print(f"kernel_evidence: {error}", file=sys.stderr)
        return flags.EXIT_USAGE
    missed = [text for part in found.values() for text in survey.shortcomings(**part)]
    if VALUES.json:
        Path(VALUES.json).write_text(json.dumps(found | {"missed": missed}, indent=1))
    console = Console(width=None if Console().is_terminal else WIDTH)
    if not VALUES.quiet:
        _show(console, found)
    for text in missed or ["every aim is reached"]:
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    return flags.EXIT_FAIL if missed else flags.EXIT_PASS


def _collect(clock: Clock) -> dict[str, dict[str, list[dict]]]:
    found = {}
    if "attention" in VALUES.parts:
        for kv_dtype in VALUES.kv_dtype:
            with clock.stage("attention", kv_dtype):
                found[f"attention {kv_dtype}"] = survey.attention(kv_dtype)
    if "products" in VALUES.parts:
        with clock.stage("products"):
            found["products"] = survey.products()
    return found


def _show(console: Console, found: dict[str, dict[str, list[dict]]]) -> None:
    for name, part in found.items():
        console.print(tables.kernel_table(f"{name}: code object and counters", part["kernels"]))
        column = "matrix" if name == "products" else "shape"
        title = f"{name}: share of 4.2 / 5.3 TB/s, {tables.MODELLED}; workgroups; bound"
        console.print(tables.shape_table(title, part["shapes"], column))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
