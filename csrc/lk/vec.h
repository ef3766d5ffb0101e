// Vectors as wide as the instruction set this file is compiled for, and element conversion.
// Everything lives in an anonymous namespace and uses no standard template: an inline function shared between files
// compiled for different instruction sets would be merged by the linker into whichever copy came first.
#pragma once
#include <cstdint>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "lk/cpu.h"

namespace {

#if defined(__AVX512F__)
constexpr int kVecBytes = 64;
#elif defined(__AVX2__)
constexpr int kVecBytes = 32;
#else
constexpr int kVecBytes = 16;
#endif

struct bf16 {
  std::uint16_t bits;
};
struct f16 {
  std::uint16_t bits;
};

// The type that sums are kept in: fp32 for fp32 and both 16-bit types, fp64 for fp64.
template <class T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <class T>
using Acc = typename AccOf<T>::type;

template <class A>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(kVecBytes)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(kVecBytes)));
};
template <class A>
using Vec = typename VecOf<A>::type;
template <class A>
constexpr int kLanes = kVecBytes / static_cast<int>(sizeof(A));

inline float to_acc(float v) { return v; }
inline double to_acc(double v) { return v; }
inline float to_acc(bf16 v) {
  const std::uint32_t u = static_cast<std::uint32_t>(v.bits) << 16;
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}
inline float to_acc(f16 v) {
#if defined(__F16C__)
  return _cvtsh_ss(v.bits);
#else
  const std::uint32_t sign = static_cast<std::uint32_t>(v.bits & 0x8000u) << 16, em = v.bits & 0x7fffu;
  float f;
  if (em >= 0x7c00u) {
    const std::uint32_t u = sign | 0x7f800000u | ((em & 0x3ffu) << 13);
    __builtin_memcpy(&f, &u, 4);
    return f;
  }
  // Scaling by 2^112 moves the 5-bit exponent to the 8-bit bias and is exact for subnormals too.
  const std::uint32_t u = em << 13;
  __builtin_memcpy(&f, &u, 4);
  f *= 5192296858534827628530496329220096.0f;
  return sign ? -f : f;
#endif
}

template <class T>
inline T from_acc(Acc<T> v);
template <>
inline float from_acc<float>(float v) {
  return v;
}
template <>
inline double from_acc<double>(double v) {
  return v;
}
template <>
inline bf16 from_acc<bf16>(float v) {
  std::uint32_t u;
  __builtin_memcpy(&u, &v, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((u >> 16) | 0x40u)};
  return {static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}
template <>
inline f16 from_acc<f16>(float v) {
#if defined(__F16C__)
  return {static_cast<std::uint16_t>(_cvtss_sh(v, 0))};
#else
  std::uint32_t u;
  __builtin_memcpy(&u, &v, 4);
  const std::uint16_t sign = static_cast<std::uint16_t>((u >> 16) & 0x8000u);
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
  if (u >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};
  if (u < 0x38800000u) {
    float f;
    __builtin_memcpy(&f, &u, 4);
    f += 0.5f;  // the addition rounds to the subnormal grid of 2^-24, to nearest even
    __builtin_memcpy(&u, &f, 4);
    return {static_cast<std::uint16_t>(sign | (u - 0x3f000000u))};
  }
  u += 0xc8000fffu + ((u >> 13) & 1u);
  return {static_cast<std::uint16_t>(sign | (u >> 13))};
#endif
}

template <class A>
inline Vec<A> splat(A v) {
  return Vec<A>{} + v;
}

}  // namespace
