// What a kernel may use of the machine it runs on. Kernels are structs: `Args`, `run(const Args&)`, `kThreads` a block
// and at least `kBlocks` blocks a multiprocessor, which bounds the registers of a thread.
// With LK_HOST the same kernels are compiled as host code and run by an emulator of warps and barriers (simt_host.h):
// that is how they are tested on machines without a GPU.
#pragma once
#include <cstdint>

#include "lk/cpu.h"

namespace lk::simt {

using u32 = std::uint32_t;
using u16 = std::uint16_t;

struct bf16 {
  u16 bits;
};
struct f16 {
  u16 bits;
};

template <class T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
// The type that sums are kept in: fp32 for fp32 and both 16-bit types, fp64 for fp64.
template <class T>
using Acc = typename AccOf<T>::type;

// How numbers of a type lie in memory and in a tile.
template <class T>
struct Stored {
  using type = T;
};
template <>
struct Stored<bf16> {
  using type = u16;
};
template <>
struct Stored<f16> {
  using type = u16;
};

struct alignas(16) Quad {
  float v[4];
};

struct Grid {
  i64 x = 1;
  int y = 1, z = 1;
};

constexpr int kWarp = 32;
constexpr int kMaxShared = 48 * 1024;   // what every device gives without being asked
constexpr int kMostShared = 99 * 1024;  // what every device from sm_80 on gives when it is asked
constexpr int kLargest = 227 * 1024;    // what any gives

}  // namespace lk::simt

#ifdef LK_HOST
#include "lk/simt_host.h"
#else
#include <cuda_runtime.h>
#define LK_DEVICE __device__ __forceinline__
#define LK_ANYWHERE __host__ __device__ __forceinline__
#define LK_UNROLL _Pragma("unroll")
#define LK_UNROLL_4 _Pragma("unroll 4")
#define LK_ROLLED _Pragma("unroll 1")

namespace lk::simt {

LK_DEVICE int tid() { return threadIdx.x; }
LK_DEVICE i64 block_x() { return blockIdx.x; }
LK_DEVICE int block_y() { return blockIdx.y; }
LK_DEVICE int block_z() { return blockIdx.z; }
LK_DEVICE unsigned char* shared() {
  extern __shared__ __align__(16) unsigned char lk_shared[];
  return lk_shared;
}
LK_DEVICE void sync() { __syncthreads(); }
LK_DEVICE void sync_warp() { __syncwarp(); }
template <class A>
LK_DEVICE A shuffle_xor(A v, int lanes) {
  return __shfl_xor_sync(~0u, v, lanes);
}

LK_DEVICE float to_acc(float v) { return v; }
LK_DEVICE double to_acc(double v) { return v; }
LK_DEVICE float to_acc(bf16 v) { return __uint_as_float(static_cast<u32>(v.bits) << 16); }
LK_DEVICE float to_acc(f16 v) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
  return f;
}
template <class T>
LK_DEVICE T from_acc(Acc<T> v) {
  return v;
}
template <>
LK_DEVICE bf16 from_acc<bf16>(float v) {
  bf16 r;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.bits) : "f"(v));
  return r;
}
template <>
LK_DEVICE f16 from_acc<f16>(float v) {
  f16 r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.bits) : "f"(v));
  return r;
}
// Two numbers rounded, none below zero, the first in the low half; a NaN stays.
template <class T>
LK_DEVICE u32 pack_positive(float low, float high);
template <>
LK_DEVICE u32 pack_positive<bf16>(float low, float high) {
  u32 r;
  asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <>
LK_DEVICE u32 pack_positive<f16>(float low, float high) {
  u32 r;
  asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

// Rows of 8 16-bit numbers, at 16-byte aligned addresses in shared memory, as the halves of a matrix operand: lane l
// gives the address of row l (of 16) and gets numbers 2(l%4) and 2(l%4)+1 of rows l/4 and 8+l/4.
LK_DEVICE void load_rows2(u32& a, u32& b, const void* row) {
  const u32 at = static_cast<u32>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1},[%2];" : "=r"(a), "=r"(b) : "r"(at) : "memory");
}
// Four 8 x 8 matrices: lane l gives the address of row l%8 of matrix l/8 and gets, of each matrix, numbers 2(l%4) and
// 2(l%4)+1 of row l/4.
LK_DEVICE void load_rows4(u32 (&r)[4], const void* row) {
  const u32 at = static_cast<u32>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
// Four 8 x 8 matrices, transposed: lane l gives the address of row l%8 of matrix l/8 and gets, of each matrix,
// numbers l/4 of its rows 2(l%4) and 2(l%4)+1.
LK_DEVICE void load_columns4(u32 (&r)[4], const void* row) {
  const u32 at = static_cast<u32>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
LK_DEVICE void load_columns2(u32 (&r)[2], const void* row) {
  const u32 at = static_cast<u32>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1},[%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(at)
               : "memory");
}
// 16 aligned bytes into shared memory, zeros where they are not `real`: they are there when the group of copies that
// this one is closed in has been awaited, and a barrier passed. All but the last kOpen groups are awaited. kAgain: what
// is read will be read again soon, and passes through the first cache.
template <bool kAgain>
LK_DEVICE void copy_later(void* to, const void* from, bool real) {
  const u32 at = static_cast<u32>(__cvta_generic_to_shared(to)), bytes = real ? 16 : 0;
  if constexpr (kAgain)
    asm volatile("cp.async.ca.shared.global [%0],[%1],16,%2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
  else
    asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
}
LK_DEVICE void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kOpen>
LK_DEVICE void await_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kOpen) : "memory");
}
// d[16 x 8] += a[16 x 16] b[16 x 8], products exact, sums in fp32.
template <class T>
LK_DEVICE void multiply(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1);
template <>
LK_DEVICE void multiply<bf16>(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
template <>
LK_DEVICE void multiply<f16>(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

namespace {

template <class K>
__global__ void __launch_bounds__(K::kThreads, K::kBlocks) entry(const __grid_constant__ typename K::Args args) {
  K::run(args);
}

}  // namespace

// A cudaError_t; 0 is success.
template <class K>
int launch(const char*, const Grid& grid, int shared, void* stream, const typename K::Args& args) {
  const void* kernel = reinterpret_cast<const void*>(&entry<K>);
  if (shared > kMaxShared) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error) return static_cast<int>(error);
  }
  void* list[] = {const_cast<typename K::Args*>(&args)};
  const dim3 blocks(static_cast<unsigned>(grid.x), grid.y, grid.z);
  const cudaError_t error =
      cudaLaunchKernel(kernel, blocks, dim3(K::kThreads), list, shared, static_cast<cudaStream_t>(stream));
  return static_cast<int>(error ? error : cudaGetLastError());
}

}  // namespace lk::simt
#endif
