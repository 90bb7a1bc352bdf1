"""What can be shown of the kernels' speed on an MI300X without one.

For every attention and weight kernel, at the shapes of Llama-3-8B and 70B (batches of 1, 4 and 64;
contexts of 4k, 32k and 128k): registers, spills, LDS and occupancy from the code object; bytes of
K and V (or weights) read over those needed, the share read 16 bytes a lane, 128-byte lines, loads
in flight and bank conflicts from the emulator's counters; issue clocks from llvm-mca; and the
share of 4.2 and 5.3 TB/s that a model makes of them. The first workgroups of each launch are run,
the rest extrapolated. Nothing printed is a measured MI300X time.

Examples:
  python -m experiments.kernel_evidence
  python -m experiments.kernel_evidence --kv_dtype=float16 --parts=attention

Exit codes: 0 every aim is reached; 1 one is not (they are listed); 2 bad flags.
"""

import sys
from collections.abc import Iterator

from absl import flags as absl_flags

from experiments import flags, outcome
from experiments.evidence import survey, tables
from experiments.progress import Clock
from experiments.revision import commit
from hip_engine.kv_types import KV_TYPES

PARTS = ("attention", "products")
MORE = ((absl_flags.DEFINE_multi_enum, "parts", list(PARTS), PARTS, "What is looked at; repeat."),)
WIDTH = 230


def main(config: flags.Config, values: absl_flags.FlagValues) -> int:
    clock = Clock(quiet=config.quiet)
    found = outcome.Outcome("kernel_evidence", config, width=WIDTH, facts={"commit": commit()})
    if list(values.parts) != list(PARTS):
        found.own["parts"] = ",".join(values.parts)
    for name, part in _collected(config, values.parts, clock):
        found.tables.append(
            tables.kernel_table(f"{name}: code object and counters", part["kernels"])
        )
        column = "matrix" if name == "products" else "shape"
        title = f"{name}: share of 4.2 / 5.3 TB/s, {tables.MODELLED}; workgroups; bound"
        found.tables.append(tables.shape_table(title, part["shapes"], column))
        for kind, rows in part.items():
            found.events += [{"event": kind, "part": name, **row} for row in rows]
        missed = survey.shortcomings(**part)
        found.reasons += [(flags.EXIT_FAIL, text) for text in missed]
    if not found.reasons:
        found.lines.append("every aim is reached")
    found.sure = f"{tables.MODELLED}: bytes, loads and instructions are counted"
    return outcome.publish(found, clock)


def _collected(
    config: flags.Config, parts: list[str], clock: Clock
) -> Iterator[tuple[str, dict[str, list[dict]]]]:
    """(name, rows) of each part; one cache if --kv_dtype names it, else all."""
    named = dict(config.sources)["kv_dtype"] != "default"
    for kv_dtype in [config.kv_dtype] if named else KV_TYPES:
        if "attention" in parts:
            with clock.stage("attention", kv_dtype):
                part = survey.attention(kv_dtype)
            yield f"attention {kv_dtype}", part
    if "products" in parts:
        with clock.stage("products"):
            part = survey.products()
        yield "products", part


if __name__ == "__main__":
    sys.exit(flags.run(main, __doc__, more=MORE))
