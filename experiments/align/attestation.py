"""Whether the route that was asked for is the one that executed."""

from collections.abc import Mapping


def why_not_attested(
    route: str,
    observed: str,
    attention_mfma: int | None,
    attention_contains: Mapping[str, int] | None = None,
) -> str:
    """Why `observed`, derived from what executed, does not attest `route`; empty if it does.

    `route` is the concrete kernel/matmul that `auto` was resolved to. `attention_mfma` counts the
    matrix-core instructions that attention executed. Where the device cannot count (None),
    `attention_contains` must say of every attention kernel that was launched how many its code
    holds: none proves that none ran, and mfma wants some in each.
    """
    kernel, _, matmul = route.partition("/")
    seen_kernel, _, seen_matmul = observed.partition("/")
    if seen_kernel != kernel:
        return f"route {route} asked for {kernel} kernels, {seen_kernel} kernels executed"
    counts = {"attention executed": attention_mfma}
    if attention_mfma is None:
        counts = {f"{symbol} contains": n for symbol, n in (attention_contains or {}).items()}
    if not counts:
        return f"route {route}: nothing says which units multiplied"
    for what, count in counts.items():
        if seen_matmul != matmul or (matmul == "mfma") != (count > 0):
            return f"route {route}: {what} {count} matrix-core instructions"
    return ""
