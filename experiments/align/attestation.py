"""Whether the route that was asked for is the one that executed."""


def why_not_attested(route: str, observed: str, attention_mfma: int | None) -> str:
    """Why `observed`, derived from what executed, does not attest `route`; empty if it does.

    `route` is the concrete kernel/matmul that `auto` was resolved to. `attention_mfma` counts the
    matrix-core instructions of attention, None where the device cannot count: symbols alone do not
    show which units multiplied.
    """
    kernel, _, matmul = route.partition("/")
    seen_kernel, _, seen_matmul = observed.partition("/")
    if seen_kernel != kernel:
        return f"route {route} asked for {kernel} kernels, {seen_kernel} kernels executed"
    if attention_mfma is None:
        return f"route {route}: this device does not count matrix-core instructions"
    if seen_matmul != matmul or (matmul == "mfma") != (attention_mfma > 0):
        return f"route {route}: attention executed {attention_mfma} matrix-core instructions"
    return ""
