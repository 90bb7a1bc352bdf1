"""Faults of the weights: what the file says, and how it is decoded."""

from experiments.align.faults.fault import REFUSED, Fault, patch

WEIGHTS = (
    Fault(
        "q4_k_scales_of_late_blocks",
        "L2",
        patch(
            "weight_formats.h",
            "(low4 & 0x0f0f0f0f) | ((header[1] >> 2) & 0x30303030)",
            "(low4 & 0x0f0f0f0f) | ((header[1] >> 4) & 0x0c0c0c0c)",
        ),
        says="the device decodes",
        code=REFUSED,
    ),
    Fault(
        "q6_k_planes_swapped",
        "L3",
        patch(
            "weight_formats.h",
            "const uint32_t bits = tops[i] >> (2 * p);",
            "const uint32_t bits = tops[i] >> (2 - 2 * p);",
        ),
        says="the device decodes",
        code=REFUSED,
    ),
)
