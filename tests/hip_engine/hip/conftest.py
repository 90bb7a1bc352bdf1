"""The HIP runtime that executes on the emulated device, under the name HipDevice looks for."""

import subprocess
import sys
from pathlib import Path

import pytest

from hip_engine.device import open_device
from hip_engine.gfx942.hip_runtime import build
from tests.hip_engine.gfx942 import objects
from tests.hip_engine.hip import programs

ROOT = Path(__file__).resolve().parents[3]

SOURCE = """
KERNEL saxpy(float a, const float* x, float* y, int n) {
  int i = bid() * 256 + tid();
  if (i < n) y[i] = __builtin_fmaf(a, x[i], y[i]);
}
KERNEL add(int* x, int amount) { x[bid() * 64 + tid()] += amount; }
KERNEL append(int* log, int value) { if (tid() == 0) log[++log[0]] = value; }
KERNEL store_at(unsigned long address) { *(volatile int*)address = 1; }
KERNEL nothing() {}
DEVICE int table[4] = {1, 2, 3, 4};
KERNEL read_table(int* out) { out[tid()] = table[tid() & 3]; }
extern SHARED int dynamic[];
KERNEL reverse(int* x) {
  dynamic[tid()] = x[tid()];
  barrier();
  x[tid()] = dynamic[63 - tid()];
}
"""


@pytest.fixture(scope="session")
def kernels():
    return objects.hip(SOURCE)


@pytest.fixture(scope="session")
def rocm_path(tmp_path_factory):
    """A ROCM_PATH whose lib/ is the emulated runtime."""
    folder = tmp_path_factory.mktemp("rocm")
    (folder / "lib").symlink_to(build.build())
    return folder


@pytest.fixture
def mi300x(rocm_path, monkeypatch):
    """HipDevice on the emulated runtime, forgetting everything afterwards."""
    monkeypatch.setenv("ROCM_PATH", str(rocm_path))
    device = open_device("mi300x")
    yield device
    device.hip.call("hipDeviceReset")


@pytest.fixture
def run_program(tmp_path):
    """Compile HIP sources for host and device, link them, and run the program as a user does."""

    def run(*sources, flags=programs.ONE_CHIP, arguments=(), variables=None):
        program = str(programs.compile_program(tmp_path, sources, flags))
        command = [sys.executable, "-m", "hip_engine.gfx942", "hip", program, *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=variables)

    return run
