"""What the kernels' arithmetic is, site by site, as the judge's bounds want it declared."""

import numpy as np

from hip_engine.config import ModelConfig
from hip_engine.kv_types import KvType
from hip_engine.launcher import UNIT, lanes_of_a_row
from hip_engine.routes import Route
from hip_engine.taps import sites_of

EXP_ULP = 1.1  # Exp of kernels/numeric.h, over all fp32 arguments
# Tile to chunk and chunk to total: the maximum of a tile is known before its sum starts.
RESCALES = 2
NORM_WAVES = 4  # kNormWaves of kernels/rms_norm.hip

Precision = dict[str, str | int | float | list]


def declared_precision(
    config: ModelConfig,
    route: Route,
    kind: KvType,
    gemm: str = "valu",
    scales_L2K: np.ndarray | None = None,
) -> dict[str, Precision]:
    """site -> store and accumulate dtypes, and what narrows a bound below "any order in fp32".

    chain: additions that a term of a sum passes. operand: what factors are rounded to before they
    are multiplied. exp_ulp, rescales: of softmax and SwiGLU. bits: where the kernel's bits follow
    from IEEE operations in an order with a name: once, fma_pairs, waves:<number>. scale_LK: of a
    scaled cache, unless all are 1.
    """
    precision: dict[str, Precision] = {
        site: {"store": "float32", "accumulate": "float32"} for site in sites_of(route)
    }
    precision["kv.k"]["store"] = precision["kv.v"]["store"] = kind.name
    if scales_L2K is not None and (scales_L2K != 1).any():
        precision["kv.k"]["scale_LK"], precision["kv.v"]["scale_LK"] = (
            scales_L2K[:, which].tolist() for which in range(2)
        )
    columns = dict.fromkeys(
        ("attn.q", "attn.k", "attn.v", "ffn.gate", "ffn.up", "logits"), config.D
    )
    columns |= {"attn.proj": config.N * config.H, "ffn.down": config.F}
    for site, count in columns.items():
        # On matrix cores, the error of a product of 16 is no more than one rounding a term.
        exact = {"chain": gemv_chain(count)}
        precision[site] |= {"operand": "float16"} if gemm == "mfma" else exact
    precision["attn.out"] |= {"exp_ulp": EXP_ULP, "rescales": RESCALES}
    precision["ffn.act"]["exp_ulp"] = EXP_ULP
    predicted = dict.fromkeys(("resid.mid", "resid.out"), "once")
    predicted |= dict.fromkeys(("attn.norm", "ffn.norm", "final.norm"), f"waves:{NORM_WAVES}")
    predicted |= dict.fromkeys(("attn.q_rope", "attn.k_rope"), "fma_pairs")
    if not kind.scaled:
        predicted |= dict.fromkeys(("kv.k", "kv.v"), "once")
    for site in predicted.keys() & precision.keys():
        precision[site]["bits"] = predicted[site]
    if route.matmul == "mfma":
        precision["attn.out"]["operand"] = kind.operands
    return precision


def gemv_chain(columns: int) -> int:
    """Additions that a product passes in gemv.hip: its lane's quarter, the quarters, the lanes."""
    lanes = lanes_of_a_row(columns)
    units = -(-columns // (UNIT * lanes))
    tail = -(-(columns % UNIT) // lanes)
    return units * UNIT // 4 + tail + 2 + lanes.bit_length() - 1
