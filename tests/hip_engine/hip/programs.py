"""HIP programs for tests, compiled for host and device and linked as a user's would be."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from hip_engine.gfx942.hip_runtime import build
from hip_engine.toolchain import find_compiler

HOST_FLAGS = ("-x", "hip", "-nogpulib", "-nogpuinc", "-std=c++17", "-O1")
ONE_CHIP = ("--offload-arch=gfx942",)
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


def compile_program(folder: Path, sources: Sequence[str], flags: Sequence[str] = ONE_CHIP) -> Path:
    """`folder`/program from sources that need no header."""
    compiler, _ = find_compiler()
    made = []
    for number, source in enumerate(sources):
        file, made_of_it = folder / f"{number}.hip", folder / f"{number}.o"
        file.write_text(PROGRAM + source)
        _require([compiler, *HOST_FLAGS, *flags, "-c", str(file), "-o", str(made_of_it)])
        made.append(str(made_of_it))
    program = folder / "program"
    _require([compiler, *made, "-o", str(program), f"-L{build.build()}", "-lamdhip64", "-lstdc++"])
    return program


def _require(command: Sequence[str]):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
