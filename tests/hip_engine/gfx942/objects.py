"""Code objects for tests: HIP source or assembly to bytes, built by clang and cached by content."""

import hashlib
import tempfile
from pathlib import Path

from hip_engine.toolchain import TARGET, cache_dir, find_compiler, run, write_atomically

HIP_FLAGS = (
    *("-x", "hip", f"--offload-arch={TARGET}", "--offload-device-only", "--no-gpu-bundle-output"),
    *("-nogpulib", "-nogpuinc", "-std=c++17", "-ffp-contract=off", "-fuse-cuid=none"),
)
ASM_FLAGS = ("-x", "assembler", "--target=amdgcn-amd-amdhsa", f"-mcpu={TARGET}", "-nogpulib")

PRELUDE = """
#define KERNEL extern "C" __attribute__((global)) void
#define DEVICE __attribute__((device))
#define SHARED __attribute__((shared))
#define NOINLINE __attribute__((device, noinline))
typedef unsigned u32;
typedef unsigned long u64;
DEVICE static inline u32 tid() { return __builtin_amdgcn_workitem_id_x(); }
DEVICE static inline u32 bid() { return __builtin_amdgcn_workgroup_id_x(); }
DEVICE static inline void barrier() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
"""


def cached(source: str, flags: tuple[str, ...]) -> Path:
    """Where `build` keeps what clang makes of `source`."""
    _, version = find_compiler()
    key = hashlib.sha256(repr((source, flags, version)).encode()).hexdigest()
    return cache_dir("tests") / f"{key}.o"


def build(source: str, flags: tuple[str, ...]) -> bytes:
    """What clang makes of `source`; a refusal is an AssertionError with its first lines."""
    path = cached(source, flags)
    if not path.exists():
        with tempfile.TemporaryDirectory(prefix="gfx942-tests-") as directory:
            (Path(directory) / "source").write_text(source)
            command = [find_compiler()[0], *flags, "source", "-o", "object"]
            done = run(command, cwd=directory)
            assert done.returncode == 0, done.stderr[:4000]
            write_atomically(path, (Path(directory) / "object").read_bytes())
    return path.read_bytes()


def hip(source: str, *flags: str) -> bytes:
    """A gfx942 code object from HIP source after the prelude; -O3 unless `flags` say otherwise."""
    return build(PRELUDE + source, (*HIP_FLAGS, *(flags or ("-O3",))))


def assembly(text: str) -> bytes:
    return build(text, ASM_FLAGS)


KERNEL_TEXT = """
  .text
  .globl {name}
  .p2align 8
  .type {name},@function
{name}:
{body}
  s_endpgm
.{name}_end:
  .size {name}, .{name}_end-{name}
  .rodata
  .p2align 6
  .amdhsa_kernel {name}
    .amdhsa_group_segment_fixed_size {lds}
    .amdhsa_private_segment_fixed_size {scratch}
    .amdhsa_kernarg_size {kernarg}
    .amdhsa_user_sgpr_kernarg_segment_ptr 1
    .amdhsa_system_vgpr_workitem_id 2
    .amdhsa_next_free_vgpr {vgprs}
    .amdhsa_next_free_sgpr 96
    .amdhsa_accum_offset {accum}
    .amdhsa_float_denorm_mode_32 {denorm}
    .amdhsa_float_denorm_mode_16_64 {denorm}
  .end_amdhsa_kernel
"""


def kernel_text(
    name: str,
    body: str,
    *,
    pointers: int = 1,
    lds: int = 0,
    scratch: int = 0,
    vgprs: int = 256,
    accum: int = 128,
    denorm: int = 3,
) -> tuple[str, str]:
    """Assembly of a kernel that takes pointers (s[0:1] holds the kernarg), and its metadata."""
    text = KERNEL_TEXT.format(
        name=name,
        body=body,
        lds=lds,
        scratch=scratch,
        kernarg=8 * pointers,
        vgprs=vgprs,
        accum=accum,
        denorm=denorm,
    )
    arguments = "".join(
        f"      - {{.size: 8, .offset: {8 * i}, .value_kind: global_buffer, "
        ".address_space: global}\n"
        for i in range(pointers)
    )
    metadata = (
        f"  - .name: {name}\n    .symbol: {name}.kd\n    .kernarg_segment_size: {8 * pointers}\n"
        f"    .group_segment_fixed_size: {lds}\n    .private_segment_fixed_size: {scratch}\n"
        "    .kernarg_segment_align: 8\n    .wavefront_size: 64\n    .sgpr_count: 96\n"
        f"    .vgpr_count: {vgprs}\n    .max_flat_workgroup_size: 1024\n    .args:\n{arguments}"
    )
    return text, metadata


def kernels(*texts: tuple[str, str], with_metadata: bool = True) -> bytes:
    """One code object from several `kernel_text` results."""
    metadata = "".join(m for _, m in texts)
    note = f"  .amdgpu_metadata\namdhsa.version: [1, 2]\namdhsa.kernels:\n{metadata}"
    note += "  .end_amdgpu_metadata\n"
    target = f'  .amdgcn_target "amdgcn-amd-amdhsa--{TARGET}"\n'
    return assembly(target + "".join(t for t, _ in texts) + (note if with_metadata else ""))
