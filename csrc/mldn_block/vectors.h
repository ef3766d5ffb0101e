// Vectors: ReLU that keeps NaN, masks, dropout, sums of lanes.
#pragma once
#include "mldn_block/block.h"
#include "rsdc2d/sparse_grad_tile.h"

namespace {
namespace mldn {

template <class A>
struct MaskOf;
template <>
struct MaskOf<float> {
  typedef std::int32_t type __attribute__((vector_size(kVecBytes)));
};
template <>
struct MaskOf<double> {
  typedef std::int64_t type __attribute__((vector_size(kVecBytes)));
};
template <class A>
using Mask = typename MaskOf<A>::type;

template <class A>
LK_INLINE Vec<A> choose(Mask<A> mask, Vec<A> v) {
  return (Vec<A>)((Mask<A>)v & mask);
}

#if defined(__AVX512F__)
LK_INLINE Vec<float> relu(Vec<float> v) { return (Vec<float>)_mm512_max_ps(_mm512_setzero_ps(), (__m512)v); }
LK_INLINE Vec<double> relu(Vec<double> v) { return (Vec<double>)_mm512_max_pd(_mm512_setzero_pd(), (__m512d)v); }
LK_INLINE Vec<float> where_positive(Vec<float> at, Vec<float> v) {
  return (Vec<float>)_mm512_maskz_mov_ps(_mm512_cmp_ps_mask((__m512)at, _mm512_setzero_ps(), _CMP_GT_OQ), (__m512)v);
}
#elif defined(__AVX2__)
LK_INLINE Vec<float> relu(Vec<float> v) { return (Vec<float>)_mm256_max_ps(_mm256_setzero_ps(), (__m256)v); }
LK_INLINE Vec<double> relu(Vec<double> v) { return (Vec<double>)_mm256_max_pd(_mm256_setzero_pd(), (__m256d)v); }
#else
template <class V>
LK_INLINE V relu(V v) {
  return v < 0 ? V{} : v;
}
#endif
template <class V>
LK_INLINE V where_positive(V at, V v) {
  return at > 0 ? v : V{};
}

// The first n lanes, the others zero.
template <class A>
LK_INLINE Vec<A> head(Vec<A> v, i64 n) {
  constexpr int V = kLanes<A>;
  alignas(kVecBytes) static constexpr auto lanes = [] {
    struct {
      A at[V];
    } l{};
    for (int i = 0; i < V; ++i) l.at[i] = static_cast<A>(i);
    return l;
  }();
  Vec<A> index;
  __builtin_memcpy(&index, lanes.at, sizeof index);
  return choose<A>(index < every(static_cast<A>(n)), v);
}

// What exists of a vector of which n elements are left in its line.
template <class T>
LK_INLINE void store_line(T* to, Vec<Acc<T>> v, i64 n) {
  if (n >= kLanes<Acc<T>>)
    vstore(to, v);
  else if (n > 0)
    vstore(to, v, static_cast<int>(n));
}
template <class T>
LK_INLINE Vec<Acc<T>> load_line(const T* from, i64 n) {
  return n >= kLanes<Acc<T>> ? vload(from) : n > 0 ? vload(from, static_cast<int>(n)) : Vec<Acc<T>>{};
}

// Which pixels of a channel are kept: mix(pixel ^ key) >= threshold.
LK_INLINE std::uint32_t mixed(std::uint32_t v) {
  v ^= v >> 16;
  v *= 0x7feb352du;
  v ^= v >> 15;
  v *= 0x846ca68bu;
  return v ^ (v >> 16);
}
struct Drop {
  std::uint32_t threshold;
  std::uint64_t seed;
  std::uint32_t key(i64 row) const {
    const auto low = static_cast<std::uint32_t>(seed), high = static_cast<std::uint32_t>(seed >> 32);
    return mixed(mixed(static_cast<std::uint32_t>(row) ^ low) ^ high);
  }
};
template <class A>
LK_INLINE Vec<A> kept(Vec<A> v, i64 pixel, std::uint32_t key, std::uint32_t threshold) {
  constexpr int V = kLanes<A>;
  typedef std::uint32_t U __attribute__((vector_size(4 * V)));
  alignas(64) static constexpr std::uint32_t lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  U u;
  __builtin_memcpy(&u, lanes, sizeof u);
  u = (u + static_cast<std::uint32_t>(pixel)) ^ key;
  u ^= u >> 16;
  u *= 0x7feb352du;
  u ^= u >> 15;
  u *= 0x846ca68bu;
  u ^= u >> 16;
  return choose<A>(__builtin_convertvector(u >= threshold, Mask<A>), v);
}

// The sums of V rows of V lanes each.
template <class A>
LK_INLINE Vec<A> sum_rows(const A* rows) {
  Vec<A> s;
  for (int i = 0; i < kLanes<A>; ++i) s[i] = rsdc::sum_lanes<A>(vload(rows + i * kLanes<A>));
  return s;
}
#if defined(__AVX512F__)
template <>
LK_INLINE Vec<float> sum_rows<float>(const float* rows) {
  __m512 t[8], u[4], v[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m512 a = _mm512_loadu_ps(rows + i * 32), b = _mm512_loadu_ps(rows + i * 32 + 16);
    t[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(t[2 * i]), b = _mm512_castps_pd(t[2 * i + 1]);
    u[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
    v[i] = _mm512_add_ps(_mm512_shuffle_f32x4(u[2 * i], u[2 * i + 1], 0x88),
                         _mm512_shuffle_f32x4(u[2 * i], u[2 * i + 1], 0xdd));
  return (Vec<float>)_mm512_add_ps(_mm512_shuffle_f32x4(v[0], v[1], 0x88), _mm512_shuffle_f32x4(v[0], v[1], 0xdd));
}
#elif defined(__AVX2__)
template <>
LK_INLINE Vec<float> sum_rows<float>(const float* rows) {
  __m256 t[4], u[2];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m256 a = _mm256_loadu_ps(rows + i * 16), b = _mm256_loadu_ps(rows + i * 16 + 8);
    t[i] = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m256d a = _mm256_castps_pd(t[2 * i]), b = _mm256_castps_pd(t[2 * i + 1]);
    u[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
  }
  return (Vec<float>)_mm256_add_ps(_mm256_permute2f128_ps(u[0], u[1], 0x20), _mm256_permute2f128_ps(u[0], u[1], 0x31));
}
#endif

}  // namespace mldn
}  // namespace
