// NCHW bands of 7x7 outputs, pairs of rows with fewer multiplications: Winograd's F(2, 3) down the columns, as in
// nhwc_pairs.h; each loaded row serves all products it is part of.
#pragma once
#include "multi_dwconv2d/nchw_band.h"

namespace {
namespace nchw {

constexpr i64 kPairTaps = 9 * 8;  // of a channel: rows for m0 to m3, the middle one, again m0 to m3; a column unused

#if defined(__AVX512F__)
inline void pair_taps(float* to, const float* w) {
  using V = Vector<float, 32>;
  const auto row = [&](int u) { return get_some<V>(w + u * 7, 0x7f); };
  for (int g = 0; g < 2; ++g, to += 40) {
    const V w0 = row(4 * g), w1 = row(4 * g + 1), w2 = row(4 * g + 2), ends = (w0 + w2) * 0.5f;
    put(to, w0);
    put(to + 8, ends + w1 * 0.5f);
    put(to + 16, ends - w1 * 0.5f);
    put(to + 24, w2);
  }
  put(to - 48, row(3));
}

// Four pairs: sums m0 to m3 of each, and where rows beyond the map are zeros.
template <class V>
struct Pairs {
  V m[4][4];
  const float* x;
  i64 step;
  Mask mask;
  bool top, bottom;

  template <int R>
  LK_HOT V row() const {
    V s;
    if constexpr (R < 0)
      s = top ? V{} : get_some<V>(x + R * step, mask);
    else if constexpr (R >= 8)
      s = bottom ? V{} : get_some<V>(x + R * step, mask);
    else
      s = R > 0 && R < 6 ? get<V>(x + R * step) : get_some<V>(x + R * step, mask);
    LK_IN_REGISTER(s);
    return s;
  }
  LK_HOT void sum(int n, int pair, V s, V k) { m[n][pair] = add_some(m[n][pair], s, k, mask); }
  // Rows a, b, c, d are the first of pair Q and the last of pair Q - 2.
  template <int Q>
  LK_HOT void column(const V (&k)[9], V a, V b) {
    const V c = row<2 * Q - 1>(), d = row<2 * Q>();
    if constexpr (Q < 4) sum(0, Q, d, k[4]);
    if constexpr (Q > 0 && Q < 5) sum(3, Q - 1, c, k[4]);
    const auto both = [&](int n, V t) __attribute__((always_inline)) {
      LK_IN_REGISTER(t);
      if (Q < 4) sum(n, Q, t, k[n]);
      if (Q > 1) sum(n, Q - 2, t, k[5 + n]);
    };
    if (Q > 0 || !top) both(0, a - c);
    if ((Q > 0 || !top) && (Q < 5 || !bottom)) {
      both(1, b + c);
      both(2, c - b);
    }
    if (Q < 5 || !bottom) both(3, d - b);
    if constexpr (Q < 5) column<Q + 1>(k, c, d);
  }
};

// Eight rows, columns [j, j1); above and below the band lie three rows or none.
template <class V>
__attribute__((noinline)) void pair_band(const Band& b, i64 j0, i64 j1) {
  constexpr int L = lanes<V, float>;
  for (i64 j = j0; j < j1; j += L) {
    if (j + L > j1) j = larger(0, j1 - L);
    const Columns columns(j, b.width);
    Pairs<V> p;
    const V init = all<V>(b.bias ? *b.bias : 0.0f);
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) p.m[1][q] = init, p.m[0][q] = p.m[2][q] = p.m[3][q] = V{};
    p.step = b.x_row;
    p.top = b.above == 0;
    p.bottom = b.below == 0;
    for (int v = 0; v < 7; ++v) {
      V k[9];
#pragma GCC unroll 9
      for (int u = 0; u < 9; ++u) k[u] = all<V>(b.w[u * 8 + v]);
      p.x = b.x + j - 3 + v;
      p.mask = columns.moved(v - 3);
      const V first = p.template row<-3>(), second = p.template row<-2>();
      p.template column<0>(k, first, second);
    }
    float* y = b.y + j;
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q, y += 2 * b.width) {
      put(y, p.m[0][q] + (p.m[1][q] + p.m[2][q]));
      put(y + b.width, p.m[3][q] + (p.m[1][q] - p.m[2][q]));
    }
  }
}
#endif

}  // namespace nchw
}  // namespace
