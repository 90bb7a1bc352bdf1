"""The engine's kernels under every sanitizer of the emulated device."""

import pytest

from hip_engine.engine import Engine
from hip_engine.gfx942.device import EmulatedDevice
from hip_engine.gfx942.sanitizer import CHECKS

CASES = {
    "manual_valu": {"route": "manual/valu"},
    "fused_valu_paged": {"route": "fused/valu", "page_slots": 16, "sequences": 2},
    "manual_mfma_and_gemm": {"route": "manual/mfma", "prefill_gemm": "mfma"},
    "fused_mfma": {"route": "fused/mfma"},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_no_kernel_is_found_at_fault_by_any_sanitizer(quantised_path, case):
    device = EmulatedDevice(sanitize=CHECKS.keys() - {"align"})
    engine = Engine.open(quantised_path, device, max_context=64, **CASES[case])
    engine.prefill([1, 2, 3, 4, 5])
    engine.step(6)
    engine.generate(7, 2)
    engine.close()
