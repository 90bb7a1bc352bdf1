"""Every kernel and shape that the evidence is about, as rows; and where they miss the aims."""

from collections.abc import Iterator

from experiments.evidence.counted import Counter
from experiments.evidence.shapes import BATCHES, CONTEXTS, SHAPES
from experiments.evidence.tables import kernel_row, shape_row
from hip_engine.kv_types import KV_TYPES
from hip_engine.routes import BUILT
from hip_engine.weights import FORMATS

MOST_OVER_READ = 1.02
LEAST_FRACTION = 0.8
"""Of 4.2 TB/s, at batch 64 and at one sequence of 32k tokens."""
PREFILL_FAMILIES = {1: ("valu",), 4: ("valu",), 64: ("valu", "mfma")}


def attention(kv_dtype: str) -> dict[str, list[dict]]:
    """Rows of every attention kernel that the shapes use with this cache: kernels and shapes."""
    kind, found = KV_TYPES[kv_dtype], {"kernels": [], "shapes": []}
    for shape in SHAPES:
        counter = Counter(shape.H, kind.symbol)
        for route in BUILT:
            if route.matmul == "mfma" and kind.operands is None:
                continue
            name = f"{shape.name} {kind.symbol}"
            for S in CONTEXTS:
                both = counter.attention(shape, route, kind, S)
                if S == CONTEXTS[0]:
                    found["kernels"].append(kernel_row(name, both[0]))
                for B in BATCHES:
                    symbol = both[0].descriptor.symbol
                    counts = counter.attention_workgroups(symbol, shape, S, B)
                    least = 2 * B * S * shape.K * shape.H * kind.raw.itemsize
                    launches = list(zip(both, counts, strict=True))
                    where = {"B": B, "context": S, "shape": f"B {B}, {S // 1024}k"}
                    found["shapes"].append(shape_row(name, launches, least, **where))
    return found


def products() -> dict[str, list[dict]]:
    """Rows of every kernel that multiplies weights."""
    found = {"kernels": [], "shapes": []}
    counter = Counter(SHAPES[0].H, "f16")
    for format in FORMATS.values():
        for B, families in PREFILL_FAMILIES.items():
            for family in families:
                for row, shaped in _products(counter, format, family, B):
                    if row["kernel"] not in {r["kernel"] for r in found["kernels"]}:
                        found["kernels"].append(row)
                    found["shapes"].append(shaped)
    return found


def _products(counter: Counter, format: str, family: str, B: int) -> Iterator[tuple[dict, dict]]:
    for shape in SHAPES:
        for matrix in shape.matrices:
            counted = counter.product(shape, matrix, family, format, B)
            x, y, _ = counted.grid
            least = counted.least * x / counted.workgroups
            where = {"B": B, "matrix": matrix}
            row = shape_row(f"{shape.name} B {B}", [(counted, x * y)], least, **where)
            yield kernel_row(shape.name, counted), row


def shortcomings(kernels: list[dict], shapes: list[dict]) -> list[str]:
    """One sentence for each attention kernel and aim that it misses."""
    found = []
    for row in kernels:
        where = f"{row['kernel']} ({row['for']})"
        if row["spills"] or row["scratch_bytes"]:
            found.append(f"{where} spills {row['spills']} registers")
        if not row["kernel"].startswith("attn_"):
            continue
        if row["bytes_over_least"] > MOST_OVER_READ:
            found.append(f"{where} reads K and V {row['bytes_over_least']:.3f} times")
        if row["wide_share"] < 1:
            found.append(f"{where} reads {row['wide_share']:.1%} of K and V by 16-byte loads")
    for row in shapes:
        aimed = row["B"] == 64 or (row["B"], row.get("context")) == (1, 32768)
        fraction = row["fraction_of_4.2"]
        if aimed and row["kernel"].startswith("attn_") and fraction < LEAST_FRACTION:
            text = f"modelled {fraction:.0%} of 4.2 TB/s, bound by {row['bound_at_4.2']}"
            limit = f"round trips and bytes alone leave {row['limit_of_4.2']:.0%}"
            found.append(f"{row['kernel']} ({row['for']}, {row['shape']}): {text}; {limit}")
    return found
