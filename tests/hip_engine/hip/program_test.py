"""Somebody else's HIP programs, compiled for host and device, run on the emulated runtime."""

import ctypes
import os
import subprocess
import sys
import textwrap

import pytest

from hip_engine.gfx942.hip_runtime import build
from tests.hip_engine.hip.conftest import ROOT

SAXPY = """
GLOBAL saxpy(float a, const float* x, float* y, int n) {
  int i = bid() * 256 + tid();
  if (i < n) y[i] = a * x[i] + y[i];
}
int main() {
  const int n = 1000;
  static float x[n], y[n];
  for (int i = 0; i < n; i++) x[i] = i, y[i] = 1;
  float *dx, *dy;
  CHECK(hipMalloc((void**)&dx, sizeof x));
  CHECK(hipMalloc((void**)&dy, sizeof y));
  CHECK(hipMemcpy(dx, x, sizeof x, 1));
  CHECK(hipMemcpy(dy, y, sizeof y, 1));
  saxpy<<<dim3(4), dim3(256), 0, 0>>>(2.0f, dx, dy, n);
  CHECK(hipDeviceSynchronize());
  CHECK(hipMemcpy(y, dy, sizeof y, 2));
  printf("%g %g\\n", y[0], y[n - 1]);
}
"""
BUILDS = {
    "one_chip": ("--offload-arch=gfx942",),
    "two_chips_compressed": (
        "--offload-arch=gfx90a",
        "--offload-arch=gfx942",
        "--offload-compress",
    ),
    "features_named": ("--offload-arch=gfx942:sramecc+:xnack-", "--offload-arch=gfx942:xnack+"),
}


@pytest.mark.parametrize("case", BUILDS)
def test_a_program_with_triple_chevrons_runs(case, run_program):
    flags = BUILDS[case]
    if case == "features_named":
        flags = ("--offload-arch=gfx942:sramecc+:xnack-", "--offload-arch=gfx942:sramecc+:xnack+")
    done = run_program(SAXPY, flags=flags)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 1999\n", "")


def test_symbols_shared_memory_managed_memory_and_two_translation_units(run_program):
    other = """
    GLOBAL twice(int* x) { x[tid()] *= 2; }
    void run_twice(int* x) { twice<<<dim3(1), dim3(64), 0, 0>>>(x); }
    """
    main = """
    DEVICE int table[64];
    void run_twice(int* x);
    GLOBAL reversed(int* out) {
      extern SHARED int scratch[];
      scratch[tid()] = table[tid()];
      __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
      __builtin_amdgcn_s_barrier();
      __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
      out[tid()] = scratch[63 - tid()];
      table[tid()] = -1;
    }
    int main() {
      int values[64], *out;
      for (int i = 0; i < 64; i++) values[i] = i;
      CHECK(hipMemcpyToSymbol(&table, values, sizeof values, 0, 1));
      CHECK(hipMallocManaged((void**)&out, sizeof values, 1));
      reversed<<<dim3(1), dim3(64), sizeof values, 0>>>(out);
      run_twice(out);
      CHECK(hipDeviceSynchronize());
      CHECK(hipMemcpyFromSymbol(values, &table, sizeof values, 0, 2));
      printf("%d %d %d\\n", out[0], out[63], values[5]);
      CHECK(hipFree(out));
    }
    """
    done = run_program(main, other)
    assert (done.returncode, done.stdout, done.stderr) == (0, "126 0 -1\n", "")


def test_a_program_that_faults_is_told_where(run_program):
    done = run_program("""
    GLOBAL wild(int* x) { x[tid()] = 1; }
    int main() {
      wild<<<dim3(1), dim3(64), 0, 0>>>((int*)0x1000);
      CHECK(hipDeviceSynchronize());
    }
    """)
    assert done.returncode == 3
    assert done.stdout.startswith("hipErrorIllegalAddress\nan illegal memory access")
    assert "_Z4wildPi+0x" in done.stdout and "at 0x1000" in done.stdout
    assert done.stderr.count("libamdhip64 (emulated gfx942): _Z4wildPi") == 1


def test_a_program_for_another_chip_is_told_for_which(run_program):
    done = run_program(SAXPY, flags=("--offload-arch=gfx90a",))
    assert done.returncode == 0  # this program does not check its launch
    checked = SAXPY.replace("CHECK(hipDeviceSynchronize", "CHECK(hipGetLastError")
    done = run_program(checked, flags=("--offload-arch=gfx90a",))
    assert done.returncode == 3
    assert done.stdout.startswith("hipErrorNoBinaryForGpu\n") and "gfx90a" in done.stdout


def test_a_program_can_run_under_a_sanitizer(run_program):
    source = """
    GLOBAL uninitialised(int* x, int* y) { if (x[tid()] > 3) y[tid()] = 1; }
    int main() {
      int *x, *y;
      CHECK(hipMalloc((void**)&x, 256));
      CHECK(hipMalloc((void**)&y, 256));
      uninitialised<<<dim3(1), dim3(64), 0, 0>>>(x, y);
      CHECK(hipDeviceSynchronize());
    }
    """
    assert run_program(source).returncode == 0
    done = run_program(source, variables={**os.environ, "GFX942_SANITIZE": "init"})
    assert done.returncode == 3 and "uninitialised" in done.stdout


def test_a_device_that_cannot_be_opened_is_an_error_code(run_program):
    done = run_program(SAXPY, variables={**os.environ, "GFX942_SANITIZE": "luck"})
    assert done.returncode == 3 and "luck" in done.stderr
    assert "initialization error" in done.stdout


def test_threads_of_a_program_use_the_runtime_at_once(run_program):
    done = run_program("""
    #include <pthread.h>
    GLOBAL count(int* x) { x[tid()] += 1; }
    int* numbers;
    void* work(void*) {
      hipStream_t stream;
      CHECK(hipStreamCreate(&stream));
      for (int i = 0; i < 25; i++) count<<<dim3(1), dim3(64), 0, stream>>>(numbers);
      return 0;
    }
    int main() {
      pthread_t threads[4];
      CHECK(hipMallocManaged((void**)&numbers, 256, 1));
      for (int i = 0; i < 4; i++) pthread_create(&threads[i], 0, work, 0);
      for (int i = 0; i < 4; i++) pthread_join(threads[i], 0);
      CHECK(hipDeviceSynchronize());
      printf("%d %d\\n", numbers[0], numbers[63]);
    }
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "100 100\n", "")


def test_a_program_that_is_not_there_is_one_line():
    command = [sys.executable, "-m", "hip_engine.gfx942", "hip", "/nonexistent"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("gfx942: ")


def test_a_program_that_uses_no_gpu_never_starts_python(run_program):
    broken = {**os.environ, "GFX942_LIBPYTHON": "/nonexistent"}
    done = run_program('GLOBAL k() {} int main() { puts("done"); }', variables=broken)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_python_that_cannot_be_loaded_is_an_error_code_and_a_line(run_program):
    broken = {**os.environ, "GFX942_LIBPYTHON": "/nonexistent"}
    done = run_program(SAXPY, variables=broken)
    assert done.returncode == 3 and "set GFX942_LIBPYTHON" in done.stderr


def test_a_python_program_that_knows_only_the_library_runs_on_it():
    script = textwrap.dedent("""
    import ctypes, sys
    hip = ctypes.CDLL("libamdhip64.so.6")
    count = ctypes.c_int()
    assert hip.hipGetDeviceCount(ctypes.byref(count)) == 0
    name = ctypes.create_string_buffer(64)
    assert hip.hipDeviceGetName(name, 64, 0) == 0
    print(count.value, name.value.decode())
    """)
    command = [sys.executable, "-m", "hip_engine.gfx942", "hip", sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("1 AMD Instinct MI300X (emulated)\n", "")


def test_every_name_that_programs_ask_for_is_one_library():
    handles = {ctypes.CDLL(str(build.build() / name))._handle for name in build.NAMES}
    assert len(handles) == 1


def test_without_a_program_the_path_is_printed():
    command = [sys.executable, "-m", "hip_engine.gfx942", "hip"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("export LD_LIBRARY_PATH=") and str(build.build()) in done.stdout
