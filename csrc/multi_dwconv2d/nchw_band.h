// NCHW microkernels that read rows where they are, lanes beyond the border masked: TH rows by one vector of columns, a
// kernel of K x K taps, all sums in registers.
#pragma once
#include "multi_dwconv2d/nchw_rows.h"

namespace {
namespace nchw {

#if defined(__AVX512F__)
constexpr bool kMasksSums = true;  // instead of what is loaded: that costs nothing
using Mask = unsigned;
template <class V>
LK_HOT V get_some(const float* p, Mask m) {
  if constexpr (sizeof(V) == 64)
    return (V)_mm512_maskz_loadu_ps(static_cast<__mmask16>(m), p);
  else
    return (V)_mm256_maskz_loadu_ps(static_cast<__mmask8>(m), p);
}
template <class V>
LK_HOT V add_some(V sum, V a, V b, Mask m) {
  if constexpr (sizeof(V) == 64)
    return (V)_mm512_mask3_fmadd_ps((__m512)a, (__m512)b, (__m512)sum, static_cast<__mmask16>(m));
  else
    return (V)_mm256_mask3_fmadd_ps((__m256)a, (__m256)b, (__m256)sum, static_cast<__mmask8>(m));
}
// For a vector that begins at column j >= 0 of w: the lanes whose columns, moved by t, exist.
struct Columns {
  unsigned bits;  // bit 8 + lane
  LK_HOT Columns(i64 j, i64 w) : bits((j < 8 ? ~0u << (8 - j) : ~0u) & (w - j < 24 ? (1u << (w - j + 8)) - 1 : ~0u)) {}
  LK_HOT Mask moved(int t) const { return bits >> (8 + t); }
};
#elif defined(__AVX2__)
constexpr bool kMasksSums = false;
using Mask = __m256i;
template <class V>
LK_HOT V get_some(const float* p, Mask m) {
  return (V)_mm256_maskload_ps(p, m);
}
struct Columns {
  __m256i at, end;
  LK_HOT Columns(i64 j, i64 w)
      : at(_mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(smaller(j, 8))),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))),
        end(_mm256_set1_epi32(static_cast<int>(smaller(w, w - j + 8)))) {}
  LK_HOT Mask moved(int t) const {
    const __m256i to = _mm256_add_epi32(at, _mm256_set1_epi32(t));
    return _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_setzero_si256(), to), _mm256_cmpgt_epi32(end, to));
  }
};
#endif

#if defined(__AVX2__)
// TH rows of `planes` planes that follow each other, weights and outputs too; above the rows and below them lie so many
// more of each plane. Of whole planes, elements beside them are read too.
struct Band {
  const float *x, *w, *bias;  // bias: null for none
  float* y;
  i64 x_row, x_plane, y_plane, width, planes, above, below;
};

template <int K, int TH, bool Whole, class V>
LK_HOT void band_column(V (&acc)[TH], const Band& b, const V (&k)[K], const float* x, Mask m) {
  constexpr int R = K / 2;
  // Tall bands tile a map: beyond them lie as many rows as the kernel reaches, or none.
  constexpr bool kTall = TH >= 14;
  const i64 step = b.x_row;
  const auto row = [&](int r, const float* at) __attribute__((always_inline)) {
    // What lies between rows may be read; what lies before the first or after the last of them, only of whole planes.
    const bool inside = kMasksSums && (Whole || (r > 0 && r + 2 < TH));
    V s = inside ? get<V>(at) : get_some<V>(at, m);
    LK_IN_REGISTER(s);
#pragma GCC unroll 8
    for (int u = 0; u < K; ++u)
      if (r + R - u >= 0 && r + R - u < TH) {
        V& sum = acc[r + R - u];
        if constexpr (kMasksSums)
          sum = inside ? add_some(sum, s, k[u], m) : sum + s * k[u];
        else
          sum += s * k[u];
      }
  };
  if (!Whole && (!kTall || b.above))
#pragma GCC unroll 4
    for (int q = R; q > 0; --q)
      if (kTall || b.above >= q) row(-q, x - q * step);
#pragma GCC unroll 16
  for (int r = 0; r < TH; ++r, x += step) {
    LK_OPAQUE(x);
    row(r, x);
  }
  if (!Whole && (!kTall || b.below))
#pragma GCC unroll 4
    for (int q = 0; q < R; ++q)
      if (kTall || b.below > q) row(TH + q, x + q * step);
}

template <int K, class V>
LK_HOT void band_weights(V (&k)[K], const float* w, int v) {
#pragma GCC unroll 8
  for (int u = 0; u < K; ++u) k[u] = all<V>(w[u * K + v]);
}

// Columns [j, j1), vector by vector; the last one moves back to end there, where it fits. Whole: planes of TH rows, no
// wider than a vector.
template <int K, int TH, class V, bool Whole>
__attribute__((noinline)) void band(const Band& b, i64 j0, i64 j1) {
  constexpr int L = lanes<V, float>, R = K / 2;
  // Sums of odd columns apart from those of even ones, or the multiply-adds of narrow tiles wait for each other.
  constexpr bool kApart = K > 3 && TH <= 8 && sizeof(V) < kVecBytes;
  const float *x = b.x, *w = b.w;
  float* y = b.y;
  const i64 y_row = b.width;
  Mask m[K];
  const auto masks = [&](i64 j) __attribute__((always_inline)) {
    const Columns columns(j, b.width);
#pragma GCC unroll 8
    for (int v = 0; v < K; ++v) m[v] = columns.moved(v - R);
  };
  if (Whole) masks(j0);
  for (i64 n = 0; n < b.planes; ++n, x += b.x_plane, y += b.y_plane, w += K * K) {
    const V init = all<V>(b.bias ? b.bias[n] : 0.0f);
    V held[K][K];
    if constexpr (K == 3)
#pragma GCC unroll 4
      for (int v = 0; v < K; ++v) band_weights<K, V>(held[v], w, v);
    for (i64 j = j0; j < j1; j += L) {
      if (j + L > j1) j = larger(0, j1 - L);
      if (!Whole) masks(j);
      V acc[TH];
#pragma GCC unroll 16
      for (int r = 0; r < TH; ++r) acc[r] = init;
      const float* const from = x + j - R;
      if constexpr (!kMasksSums) {  // masked loads do not set off the processor's own guesses
        const float* ahead = x + j + (TH + R) * b.x_row;
#pragma GCC unroll 16
        for (int r = 0; r < TH; ++r, ahead += b.x_row) __builtin_prefetch(ahead, 0, 3);
      }
      if constexpr (K == 3) {
#pragma GCC unroll 4
        for (int v = 0; v < K; ++v) band_column<K, TH, Whole, V>(acc, b, held[v], from + v, m[v]);
      } else {
        V k[K], odd[TH];
        if constexpr (kApart)
#pragma GCC unroll 16
          for (int r = 0; r < TH; ++r) odd[r] = V{};
        for (int v = 0; v < K; ++v) {
          band_weights<K, V>(k, w, v);
          band_column<K, TH, Whole, V>(acc, b, k, from + v, m[v]);
          if constexpr (kApart) {
            if (++v == K) break;
            band_weights<K, V>(k, w, v);
            band_column<K, TH, Whole, V>(odd, b, k, from + v, m[v]);
          }
        }
        if constexpr (kApart)
#pragma GCC unroll 16
          for (int r = 0; r < TH; ++r) acc[r] += odd[r];
      }
      float* to = y + j;
#pragma GCC unroll 16
      for (int r = 0; r < TH; ++r, to += Whole ? y_row : b.width) put(to, acc[r]);  // measured, both ways
    }
  }
}
#endif

}  // namespace nchw
}  // namespace
