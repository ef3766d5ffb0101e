// Sums of 7x7, 5x5, 3x3 and 1x1 kernels as 49 taps in four vectors.
#pragma once
#include "multi_dwconv2d/nchw_rows.h"
#include "multi_dwconv2d/params.h"

namespace {
namespace nchw {

#if defined(__AVX512F__)
// Which tap of a k x k kernel each of 64 lanes takes, and whether any.
struct Spread {
  alignas(64) int tap[64];
  unsigned short some[4];
  constexpr explicit Spread(int k) : tap{}, some{} {
    for (int t = 0; t < 49; ++t) {
      const int u = t / 7 - 3 + k / 2, v = t % 7 - 3 + k / 2;
      if (u < 0 || v < 0 || u >= k || v >= k) continue;
      tap[t] = u * k + v;
      some[t / 16] = static_cast<unsigned short>(some[t / 16] | 1 << t % 16);
    }
  }
};
constexpr Spread kSpread[] = {Spread(1), Spread(3), Spread(5)};

LK_HOT __m512 load_some(const float* p, i64 n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>(n < 16 ? (1u << n) - 1 : 0xffff), p);
}

inline bool merges(const Params& p) {
  bool seven = false, all = true;
  for (i64 m = 0; m < p.num_branches; ++m) {
    seven = seven || p.branches[m].kernel == 7;
    all = all && p.branches[m].kernel <= 7;
  }
  return seven && all;
}

// The 49 taps of one channel; `flip`: last tap first.
inline void merge(float* dst, const Params& p, const float* w, i64 channel, bool flip) {
  __m512 d[4] = {};
  for (i64 m = 0; m < p.num_branches; ++m) {
    const Branch& b = p.branches[m];
    const i64 area = b.kernel * b.kernel;
    const float* s = w + b.weight_start + channel * area;
    if (b.kernel == 7) {
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) d[q] = _mm512_add_ps(d[q], load_some(s + 16 * q, 49 - 16 * q));
      continue;
    }
    const Spread& to = kSpread[b.kernel / 2];
    const __m512 lo = load_some(s, area), hi = area > 16 ? load_some(s + 16, area - 16) : lo;
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q)
      d[q] = _mm512_add_ps(d[q], _mm512_maskz_permutex2var_ps(to.some[q], lo, _mm512_load_si512(to.tap + 16 * q), hi));
  }
  if (flip) {
    const __m512i back = _mm512_sub_epi32(_mm512_set1_epi32(16),
                                          _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    const __m512 first = d[0];
    d[0] = _mm512_permutex2var_ps(d[2], back, d[3]);
    d[3] = first;  // its first lane
    const __m512 second = d[1];
    d[1] = _mm512_permutex2var_ps(second, back, d[2]);
    d[2] = _mm512_permutex2var_ps(first, back, second);
  }
#pragma GCC unroll 3
  for (int q = 0; q < 3; ++q) _mm512_storeu_ps(dst + 16 * q, d[q]);
  dst[48] = _mm512_cvtss_f32(d[3]);
}
#else
inline bool merges(const Params&) { return false; }
inline void merge(float*, const Params&, const float*, i64, bool) {}
#endif

}  // namespace nchw
}  // namespace
