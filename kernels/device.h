// The only file that knows the compiler: the HIP runtime under hipcc, a shim under plain clang.
//
// Kernels use clang's AMDGPU builtins and ext_vector types, which both compilers have, so that the
// shim is a handful of attributes and no device library is linked.
#ifndef GRETA_KERNELS_DEVICE_H_
#define GRETA_KERNELS_DEVICE_H_

#if defined(__HIPCC__) && __has_include(<hip/hip_runtime.h>)
#include <hip/hip_runtime.h>
#else
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __launch_bounds__(threads) __attribute__((amdgpu_flat_work_group_size(1, threads)))
#endif

#define GRETA_KERNEL(threads) extern "C" __global__ __launch_bounds__(threads) void
// With registers for at least `waves` waves a SIMD.
#define GRETA_KERNEL_OF(threads, waves) \
  extern "C" __global__ __launch_bounds__(threads) __attribute__((amdgpu_waves_per_eu(waves))) void
#define GRETA_DEVICE static inline __device__ __attribute__((always_inline))

typedef __UINT8_TYPE__ uint8_t;
typedef __INT8_TYPE__ int8_t;
typedef __UINT16_TYPE__ uint16_t;
typedef __INT16_TYPE__ int16_t;
typedef __INT32_TYPE__ int32_t;
typedef __UINT32_TYPE__ uint32_t;
typedef __INT64_TYPE__ int64_t;
typedef __UINT64_TYPE__ uint64_t;
typedef _Float16 half_t;
typedef float float_x2 __attribute__((ext_vector_type(2)));
typedef float float_x4 __attribute__((ext_vector_type(4)));
typedef uint32_t uint_x4 __attribute__((ext_vector_type(4)));
typedef half_t half_x4 __attribute__((ext_vector_type(4)));
typedef half_t half_x8 __attribute__((ext_vector_type(8)));

constexpr int kWaveSize = 64;

GRETA_DEVICE int ThreadId() { return __builtin_amdgcn_workitem_id_x(); }
GRETA_DEVICE int BlockX() { return __builtin_amdgcn_workgroup_id_x(); }
GRETA_DEVICE int BlockY() { return __builtin_amdgcn_workgroup_id_y(); }
GRETA_DEVICE int BlockZ() { return __builtin_amdgcn_workgroup_id_z(); }
GRETA_DEVICE int LaneId() { return ThreadId() & (kWaveSize - 1); }

// The wave's index in its workgroup, in a scalar register: the compiler cannot see it is uniform.
GRETA_DEVICE int WaveId() { return __builtin_amdgcn_readfirstlane(ThreadId() / kWaveSize); }

GRETA_DEVICE void Barrier() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

// Loads above stay above, and in flight together: the compiler otherwise moves them to their uses.
GRETA_DEVICE void InFlight() { __builtin_amdgcn_sched_barrier(0); }

GRETA_DEVICE int32_t BitsOf(float x) { return __builtin_bit_cast(int32_t, x); }
GRETA_DEVICE float FloatOf(int32_t bits) { return __builtin_bit_cast(float, bits); }

// Loads a T whose address is only known to be a multiple of kAlign bytes.
template <class T, int kAlign>
GRETA_DEVICE T LoadAligned(const void* p) {
  T value;
  __builtin_memcpy(&value, __builtin_assume_aligned(p, kAlign), sizeof(T));
  return value;
}

// The value of `x` in `lane`; every lane of the wave must be active.
GRETA_DEVICE float FromLane(float x, int lane) {
  return FloatOf(__builtin_amdgcn_ds_bpermute(lane * 4, BitsOf(x)));
}

// The value of `x` in the lane that a DPP pattern names; every lane must be active.
template <int kPattern>
GRETA_DEVICE float Dpp(float x) {
  return FloatOf(__builtin_amdgcn_update_dpp(0, BitsOf(x), kPattern, 0xf, 0xf, true));
}

constexpr int kDppXor1 = 0xB1;         // quad_perm [1, 0, 3, 2]
constexpr int kDppXor2 = 0x4E;         // quad_perm [2, 3, 0, 1]
constexpr int kDppHalfMirror = 0x141;  // lane 7 - i of each 8
constexpr int kDppMirror = 0x140;      // lane 15 - i of each 16
constexpr int kDppXor8 = 0x128;        // row_ror 8 of each 16
constexpr int kDppRowLane = 0x150;     // + n: row_newbcast, lane n of each 16
constexpr int kDppQuad0 = 0x00;        // quad_perm [0, 0, 0, 0], and so on
constexpr int kDppQuad1 = 0x55;
constexpr int kDppQuad2 = 0xAA;
constexpr int kDppQuad3 = 0xFF;

#endif  // GRETA_KERNELS_DEVICE_H_
