"""The bits of an op whose arithmetic is declared to the last rounding.

A kernel that uses IEEE operations only, in an order that is known, has one possible result. What
is modelled here, by the name an engine declares as `bits`:
  once       one operation an element, rounded once: residual sums, and storing to the cache;
  fma_pairs  RoPE as fma(a, cos, -(b * sin)) and fma(a, sin, b * cos);
  waves:<W>  RMS norm by W waves of 64 lanes: strided fma chains, a binary tree over the lanes, the
             waves in order; then x * (1 / sqrt(mean + eps)) * weight.
NumPy's fp32 operations are IEEE ones and keep subnormals, which XLA's on a CPU do not.
"""

import numpy as np

from greta_jax.errors import PrecisionError
from greta_jax.graph import LAYER_OP
from greta_jax.mfma import fma
from greta_jax.model import Oracle
from greta_jax.taps import MODEL_LAYER

LANES = 64
FP32 = np.float32
NORMS = {"attn.norm": "attn_norm_D", "ffn.norm": "ffn_norm_D", "final.norm": "final_norm_D"}


def predict(oracle: Oracle, site: str, layer: int, inputs: dict, bits: str, store: str):
    """The tensor, T first, that the arithmetic `bits` must give on `inputs`, or None.

    `inputs` are INPUTS[site] of greta_jax.graph, as an engine stored them; None if they are not
    fp32, so that the engine's own arithmetic had other values. Of the cache, the rows appended.
    Raises PrecisionError for an arithmetic that is not modelled at this site.
    """
    kind, _, value = bits.partition(":")
    tensors = [np.asarray(inputs[name]) for name in inputs if name != "positions"]
    if any(tensor.dtype != FP32 for tensor in tensors):
        return None
    if kind == "once" and len(tensors) == 1:
        return tensors[0].astype(store)
    if kind == "once" and site in ("resid.mid", "resid.out"):
        return tensors[0] + tensors[1]
    if kind == "fma_pairs" and site in ("attn.q_rope", "attn.k_rope"):
        return _rotate(oracle, layer, tensors[0], np.asarray(inputs["positions"]))
    if kind == "waves" and site in NORMS:
        at = layer if site in LAYER_OP else MODEL_LAYER
        return _rms_norm(oracle, NORMS[site], at, tensors[0], int(value))
    raise PrecisionError(
        f"bits {bits!r} are not modelled at {site}",
        remedy="declare bits that greta_jax.determined knows, or none",
    )


def _rotate(oracle: Oracle, layer: int, x_TNH: np.ndarray, positions_T: np.ndarray) -> np.ndarray:
    cos_T1R, sin_T1R = (
        np.asarray(table)[:, None].astype(FP32)
        for table in oracle.config.rotation(positions_T, layer)
    )
    a, b = x_TNH[..., 0::2], x_TNH[..., 1::2]
    pairs = (fma(a, cos_T1R, -(b * sin_T1R)), fma(a, sin_T1R, b * cos_T1R))
    return np.stack([np.asarray(part) for part in pairs], axis=-1).reshape(x_TNH.shape)


def _rms_norm(oracle: Oracle, weight: str, layer: int, x_TD: np.ndarray, waves: int) -> np.ndarray:
    (weight_D,) = (np.asarray(w, FP32) for w in oracle.weights.chunks(weight, layer))
    T, D = x_TD.shape
    threads = LANES * waves
    squares_TX = np.zeros((T, threads), FP32)
    for start in range(0, D, threads):
        x_TX = x_TD[:, start : start + threads]
        width = x_TX.shape[1]
        squares_TX[:, :width] = np.asarray(fma(x_TX, x_TX, squares_TX[:, :width]))
    tree = squares_TX.reshape(T, waves, LANES)
    while tree.shape[-1] > 1:
        tree = tree[..., 0::2] + tree[..., 1::2]
    total_T = tree[:, 0, 0]
    for wave in range(1, waves):
        total_T = total_T + tree[:, wave, 0]
    scale_T = FP32(1) / np.sqrt(total_T / FP32(D) + FP32(oracle.config.rms_eps))
    return x_TD * scale_T[:, None] * weight_D
