"""What the device holds of every weight, against the gguf package: at load, always on."""

from collections.abc import Mapping

import numpy as np
from gguf import quants

from hip_engine.device import Buffer
from hip_engine.errors import WeightsDisagree
from hip_engine.launcher import Launcher
from hip_engine.memory_plan import CHECKED_ROWS
from hip_engine.weights import ModelFile, Tensor


def check_weights_on_device(launcher: Launcher, model: ModelFile, buffers: Mapping[str, Buffer]):
    """Bit for bit, the first, middle and last row of every matrix, decoded, and whole norms.

    A decoded weight rounds once, so nothing is allowed to differ.

    Raises:
      WeightsDisagree: the first tensor and element that differ.
    """
    device = launcher.device
    for tensor in model.tensors.values():
        if tensor.rows < CHECKED_ROWS:  # norms are copied, not decoded
            held = device.read(buffers[tensor.name], np.dtype(np.float32), tensor.columns)
            _compare(tensor, np.array([0]), held[None])
            continue
        rows = np.array([0, tensor.rows // 2, tensor.rows - 1], np.int32)
        device.write(buffers["check.rows"], rows)
        launcher.gather_rows(
            tensor.format,
            buffers[tensor.name].address,
            buffers["check.rows"].address,
            buffers["check.values"].address,
            tensor.columns,
            T=CHECKED_ROWS,
        )
        count = CHECKED_ROWS * tensor.columns
        got = device.read(buffers["check.values"], np.dtype(np.float32), count)
        _compare(tensor, rows, got.reshape(CHECKED_ROWS, tensor.columns))


def _compare(tensor: Tensor, rows: np.ndarray, got: np.ndarray):
    data = tensor.data.reshape(tensor.rows, -1)[rows]
    ref = quants.dequantize(data, tensor.type).astype(np.float32)
    differs = np.argwhere(ref != got)
    if len(differs):
        i, column = differs[0]
        raise WeightsDisagree(
            f"{tensor.name} ({tensor.type.name}) row {rows[i]} column {column}: the device decodes "
            f"{got[i, column]}, gguf {ref[i, column]} ({len(differs)} of {got.size} differ)"
        )
