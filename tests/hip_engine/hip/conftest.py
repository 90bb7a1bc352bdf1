"""The HIP runtime that executes on the emulated device, under the name HipDevice looks for."""

import subprocess
import sys
from pathlib import Path

import pytest

from hip_engine.device import open_device
from hip_engine.gfx942.hip_runtime import build
from hip_engine.toolchain import find_compiler
from tests.hip_engine.gfx942 import objects

ROOT = Path(__file__).resolve().parents[3]
HOST_FLAGS = ("-x", "hip", "-nogpulib", "-nogpuinc", "-std=c++17", "-O1")

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


PROGRAM = """
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#define GLOBAL __attribute__((global)) void
#define DEVICE __attribute__((device))
#define SHARED __attribute__((shared))
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
typedef struct Stream* hipStream_t;
typedef int hipError_t;
extern "C" {
int hipMalloc(void**, size_t);
int hipMallocManaged(void**, size_t, unsigned);
int hipFree(void*);
int hipMemcpy(void*, const void*, size_t, int);
int hipMemcpyToSymbol(const void*, const void*, size_t, size_t, int);
int hipMemcpyFromSymbol(void*, const void*, size_t, size_t, int);
int hipDeviceSynchronize();
int hipGetLastError();
const char* hipGetErrorString(int);
const char* hipGetErrorName(int);
int hipGetDeviceCount(int*);
int hipStreamCreate(hipStream_t*);
int hipLaunchKernel(const void*, dim3, dim3, void**, size_t, hipStream_t);
int __hipPushCallConfiguration(dim3, dim3, size_t, hipStream_t);
int __hipPopCallConfiguration(dim3*, dim3*, size_t*, hipStream_t*);
}
#define CHECK(call) do { int status = (call); if (status) { \\
  printf("%s\\n%s\\n", hipGetErrorName(status), hipGetErrorString(status)); exit(3); } } while (0)
DEVICE static inline unsigned tid() { return __builtin_amdgcn_workitem_id_x(); }
DEVICE static inline unsigned bid() { return __builtin_amdgcn_workgroup_id_x(); }
"""


@pytest.fixture
def run_program(tmp_path):
    """Compile HIP sources for host and device, link them, and run the program as a user does."""

    def run(*sources, flags=("--offload-arch=gfx942",), arguments=(), variables=None):
        compiler, _ = find_compiler()
        made = []
        for number, source in enumerate(sources):
            file, made_of_it = tmp_path / f"{number}.hip", tmp_path / f"{number}.o"
            file.write_text(PROGRAM + source)
            command = [compiler, *HOST_FLAGS, *flags, "-c", str(file), "-o", str(made_of_it)]
            _require(command)
            made.append(str(made_of_it))
        program = str(tmp_path / "program")
        _require([compiler, *made, "-o", program, f"-L{build.build()}", "-lamdhip64", "-lstdc++"])
        command = [sys.executable, "-m", "hip_engine.gfx942", "hip", program, *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=variables)

    return run


def _require(command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
