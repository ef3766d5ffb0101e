// Vectors as wide as the instruction set this file is compiled for, and element conversion.
// Everything lives in an anonymous namespace and uses no standard template: an inline function shared between files
// compiled for different instruction sets would be merged by the linker into whichever copy came first.
#pragma once
#include <cstdint>
#if defined(__AVX2__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 suspects its own AVX-512 header
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
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

#define LK_INLINE inline __attribute__((always_inline))
// Makes the compiler forget how a pointer was formed: it then addresses base + constant instead of keeping one
// precomputed offset a load in registers it does not have.
#define LK_OPAQUE(pointer) asm("" : "+r"(pointer))
// Keeps a loaded vector in a register: the compiler would rather repeat the load in every instruction that uses it.
#if defined(__x86_64__) || defined(__i386__)
#define LK_KEEP(vector) asm("" : "+v"(vector))
#elif defined(__aarch64__)
#define LK_KEEP(vector) asm("" : "+w"(vector))
#else
#define LK_KEEP(vector) static_cast<void>(vector)
#endif

template <class A>
LK_INLINE Vec<A> splat(A v) {
  return Vec<A>{} + v;
}

// a * b + c on whole vectors: one instruction where there is one.
template <class V>
LK_INLINE V vfma(V a, V b, V c) {
  return a * b + c;
}

// vload(p): a vector's worth of elements at any address, as accumulators. vload(p, n): the first n, the rest zero; no
// other element is touched. vstore: the reverse, rounding to nearest even.
template <class T>
LK_INLINE Vec<Acc<T>> vload(const T* p) {
  Vec<Acc<T>> v;
  if constexpr (sizeof(T) == sizeof(Acc<T>)) {
    __builtin_memcpy(&v, p, sizeof v);
  } else {
    for (int i = 0; i < kLanes<float>; ++i) v[i] = to_acc(p[i]);
  }
  return v;
}
template <class T>
LK_INLINE void vstore(T* p, Vec<Acc<T>> v) {
  if constexpr (sizeof(T) == sizeof(Acc<T>)) {
    __builtin_memcpy(p, &v, sizeof v);
  } else {
    for (int i = 0; i < kLanes<float>; ++i) p[i] = from_acc<T>(v[i]);
  }
}

// Stores past the caches; p must be aligned to the vector. A thread that used them ends with stream_fence().
#if defined(__AVX512F__)
LK_INLINE void vstream(float* p, Vec<float> v) { _mm512_stream_ps(p, (__m512)v); }
LK_INLINE void vstream(double* p, Vec<double> v) { _mm512_stream_pd(p, (__m512d)v); }
#elif defined(__AVX2__)
LK_INLINE void vstream(float* p, Vec<float> v) { _mm256_stream_ps(p, (__m256)v); }
LK_INLINE void vstream(double* p, Vec<double> v) { _mm256_stream_pd(p, (__m256d)v); }
#else
template <class T>
LK_INLINE void vstream(T* p, Vec<Acc<T>> v) {
  vstore(p, v);
}
#endif
#if defined(__AVX2__)
constexpr bool kCanStream = true;
LK_INLINE void stream_fence() { _mm_sfence(); }
#else
constexpr bool kCanStream = false;
LK_INLINE void stream_fence() {}
#endif

#if defined(__AVX512F__)
using Half = __m256i;
LK_INLINE Half load_half(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
LK_INLINE void store_half(void* p, Half h) { _mm256_storeu_si256(static_cast<__m256i*>(p), h); }
LK_INLINE Vec<float> widen(Half h, bf16) { return (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16); }
LK_INLINE Vec<float> widen(Half h, f16) { return (Vec<float>)_mm512_cvtph_ps(h); }
LK_INLINE Half narrow(Vec<float> v, f16) { return _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT); }
LK_INLINE Half narrow(Vec<float> v, bf16) {
  const __m512i u = (__m512i)v, odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i round = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(round, nan, quiet), 16));
}
#elif defined(__AVX2__)
using Half = __m128i;
LK_INLINE Half load_half(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
LK_INLINE void store_half(void* p, Half h) { _mm_storeu_si128(static_cast<__m128i*>(p), h); }
LK_INLINE Vec<float> widen(Half h, bf16) { return (Vec<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16); }
LK_INLINE Vec<float> widen(Half h, f16) { return (Vec<float>)_mm256_cvtph_ps(h); }
LK_INLINE Half narrow(Vec<float> v, f16) { return _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT); }
LK_INLINE Half narrow(Vec<float> v, bf16) {
  const __m256i u = (__m256i)v, odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i round = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = (__m256i)_mm256_cmp_ps((__m256)v, (__m256)v, _CMP_UNORD_Q);
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  const __m256i r = _mm256_srli_epi32(_mm256_blendv_epi8(round, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}
#endif
#if defined(__AVX512F__)
template <class T>
LK_INLINE void vstream(T* p, Vec<float> v) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrow(v, T{}));
}
#elif defined(__AVX2__)
template <class T>
LK_INLINE void vstream(T* p, Vec<float> v) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), narrow(v, T{}));
}
#endif
#if defined(__AVX2__)
LK_INLINE Vec<float> vload(const bf16* p) { return widen(load_half(p), bf16{}); }
LK_INLINE Vec<float> vload(const f16* p) { return widen(load_half(p), f16{}); }
LK_INLINE void vstore(bf16* p, Vec<float> v) { store_half(p, narrow(v, bf16{})); }
LK_INLINE void vstore(f16* p, Vec<float> v) { store_half(p, narrow(v, f16{})); }
#endif

#if defined(__AVX512F__)
LK_INLINE Vec<float> vload(const float* p, int n) {
  return (Vec<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
LK_INLINE Vec<double> vload(const double* p, int n) {
  return (Vec<double>)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p);
}
LK_INLINE void vstore(float* p, Vec<float> v, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
}
LK_INLINE void vstore(double* p, Vec<double> v, int n) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), (__m512d)v);
}
template <class T>
LK_INLINE Vec<float> vload(const T* p, int n) {
  return widen(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p), T{});
}
template <class T>
LK_INLINE void vstore(T* p, Vec<float> v, int n) {
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1), narrow(v, T{}));
}
#else
template <class T>
LK_INLINE Vec<Acc<T>> vload(const T* p, int n) {
  Vec<Acc<T>> v{};
  for (int i = 0; i < kLanes<Acc<T>>; ++i)
    if (i < n) v[i] = to_acc(p[i]);
  return v;
}
template <class T>
LK_INLINE void vstore(T* p, Vec<Acc<T>> v, int n) {
  for (int i = 0; i < kLanes<Acc<T>>; ++i)
    if (i < n) p[i] = from_acc<T>(v[i]);
}
#endif

}  // namespace
