// NHWC strips of 7x7 outputs, two rows at a time, with fewer multiplications: Winograd's F(2, 3) down the columns, for
// the first and the last three rows of the kernel; the middle one is taken as it is.
//
// Of four input rows d0 to d3 and three kernel rows w0 to w2, the output rows of a pair are m0 + m1 + m2 and
// m1 - m2 + m3, with m0 = w0 (d0 - d2), m1 = (w0 + w1 + w2) / 2 (d1 + d2), m2 = (w0 - w1 + w2) / 2 (d2 - d1) and
// m3 = w2 (d3 - d1): four products of rows instead of six. Each output meets only what it depends on: what is infinite
// or not a number spreads no further than by the definition.
#pragma once
#include "multi_dwconv2d/nhwc_strip.h"

#if defined(__AVX2__)
namespace {
namespace nhwc {

constexpr int kPairTile = 8;        // columns of a tile
constexpr int kPairRows = 11;       // of packed taps: the kernel's seven, then those of m1 and m2 of both groups
constexpr i64 kPairChannels = 128;  // at most, of a block
alignas(64) const float kNoPixel[kPairChannels] = {};

// Two rows of pixels, one for each sum: a + b and b - a, or a - b and c - d; and their rows of taps. A row beyond the
// map is one pixel of zeros, again and again.
struct PairRow {
  const float* from[4];
  i64 step[4];
  i64 taps[2];
};
struct Pair {
  PairRow rows[6];
  int sums, size;  // rows of sums, then those of differences
  float *y, *y2;   // null: one row of outputs, the sum of both
  const float *ahead[2], *out[2];
};

template <int TW, int Q>
LK_INLINE void pair_taps(Vec<float>* acc, Vec<float> s, const Vec<float>* k) {
  LK_KEEP(s);
#pragma GCC unroll 8
  for (int v = 0; v < 7; ++v)
    if (Q + 3 - v >= 0 && Q + 3 - v < TW) acc[Q + 3 - v] = vfma(s, k[v], acc[Q + 3 - v]);
}

// Pixels [Q, To) of a row.
template <int TW, int Q, int To, bool Sum>
LK_INLINE void pair_pixels(Vec<float> (&acc)[2][TW], const float* (&x)[4], const PairRow& row,
                           const Vec<float> (&k)[2][7]) {
  if constexpr (Q < To) {
#pragma GCC unroll 4
    for (int n = 0; n < (Sum ? 2 : 4); ++n) LK_OPAQUE(x[n]);
    if (Sum) {
      const Vec<float> a = vload(x[0]), b = vload(x[1]);
      pair_taps<TW, Q>(acc[0], a + b, k[0]);
      pair_taps<TW, Q>(acc[1], b - a, k[1]);
    } else {
      pair_taps<TW, Q>(acc[0], vload(x[0]) - vload(x[1]), k[0]);
      pair_taps<TW, Q>(acc[1], vload(x[2]) - vload(x[3]), k[1]);
    }
#pragma GCC unroll 4
    for (int n = 0; n < (Sum ? 2 : 4); ++n) x[n] += row.step[n];
    pair_pixels<TW, Q + 1, To, Sum>(acc, x, row, k);
  }
}

template <int TW, bool Sum>
LK_INLINE void pair_row(Vec<float> (&acc)[2][TW], const PairRow& row, i64 j, i64 c, const float* w, bool left,
                        bool right) {
  Vec<float> k[2][7];
#pragma GCC unroll 8
  for (int v = 0; v < 7; ++v) {
    k[0][v] = vload(w + row.taps[0] + v * kLanes<float>);
    k[1][v] = vload(w + row.taps[1] + v * kLanes<float>);
  }
  if (left) j -= 3;
  const float* x[4];
#pragma GCC unroll 4
  for (int n = 0; n < (Sum ? 2 : 4); ++n) x[n] = row.from[n] + j * row.step[n] + c;
  if (left) pair_pixels<TW, -3, 0, Sum>(acc, x, row, k);
  pair_pixels<TW, 0, TW, Sum>(acc, x, row, k);
  if (right) pair_pixels<TW, TW, TW + 3, Sum>(acc, x, row, k);
}

template <int TW>
LK_INLINE void pair_store(const Vec<float>* acc, float* o, i64 step, bool past) {
  if (past)
#pragma GCC unroll 8
    for (int q = 0; q < TW; ++q, o += step) {
      LK_OPAQUE(o);
      vstream(o, acc[q]);
    }
  else
#pragma GCC unroll 8
    for (int q = 0; q < TW; ++q, o += step) {
      LK_OPAQUE(o);
      vstore(o, acc[q]);
    }
}

__attribute__((noinline)) inline void pair_rows(const Rows& a, const Strip& s, const Pair& p) {
  constexpr int V = kLanes<float>, TW = kPairTile;
  for (i64 t = 0; t < s.tiles; ++t) {
    const i64 j = imin(t * TW, a.width - s.left - TW);
    const bool left = s.left + j > 0, right = s.left + j + TW < a.width;
    const float* w = s.w;
    for (i64 c = 0; c < s.vecs * V; c += V, w += a.slots * V) {
      Vec<float> acc[2][TW];
      const Vec<float> init = vload(w);
#pragma GCC unroll 8
      for (int q = 0; q < TW; ++q) acc[0][q] = init, acc[1][q] = Vec<float>{};
      // Not into the first-level cache, where rows a page apart push each other out.
#pragma GCC unroll 2
      for (int n = 0; n < 2; ++n) {
        const float *x = p.ahead[n] + j * a.x_col + c, *y = p.out[n] + j * a.y_col + c;
#pragma GCC unroll 8
        for (int q = 0; q < TW; ++q, x += a.x_col) {
          LK_OPAQUE(x);
          __builtin_prefetch(x, 0, 2);
        }
        if (!a.past)
#pragma GCC unroll 8
          for (int q = 0; q < TW; ++q, y += a.y_col) {
            LK_OPAQUE(y);
            __builtin_prefetch(y, 1, 2);
          }
      }
      for (int r = 0; r < p.sums; ++r) pair_row<TW, true>(acc, p.rows[r], j, c, w, left, right);
      if (p.y2)
#pragma GCC unroll 8
        for (int q = 0; q < TW; ++q) {
          const Vec<float> m = acc[0][q];
          acc[0][q] = m + acc[1][q];
          acc[1][q] = m - acc[1][q];
        }
      for (int r = p.sums; r < p.size; ++r) pair_row<TW, false>(acc, p.rows[r], j, c, w, left, right);
      if (!p.y2)
#pragma GCC unroll 8
        for (int q = 0; q < TW; ++q) acc[0][q] += acc[1][q];
      pair_store<TW>(acc[0], p.y + j * a.y_col + c, a.y_col, a.past);
      if (p.y2) pair_store<TW>(acc[1], p.y2 + j * a.y_col + c, a.y_col, a.past);
    }
  }
}

// Input rows around an output row, as rows of pixels.
struct PairInput {
  const float* x;  // of the output row
  i64 above, below, x_row, x_col;
  static constexpr i64 kNone = 1 << 20;
  // Rows a and b, then c and d, with rows u and v of the packed taps; nothing where all lie beyond the map.
  void add(Pair& p, i64 a, i64 b, i64 c, i64 d, i64 u, i64 v) const {
    const i64 rows[4] = {a, b, c, d};
    PairRow& to = p.rows[p.size];
    bool some = false;
    for (int n = 0; n < 4; ++n) {
      const bool has = rows[n] >= -above && rows[n] <= below;
      to.from[n] = has ? x + rows[n] * x_row : kNoPixel;
      to.step[n] = has ? x_col : 0;
      some = some || has;
    }
    to.taps[0] = (1 + u * 7) * kLanes<float>;
    to.taps[1] = (1 + v * 7) * kLanes<float>;
    p.size += some;
  }
};

inline void pair_strip(const Rows& a, const Strip& s, const Strip& next) {
  constexpr i64 kNone = PairInput::kNone;
  for (i64 i = 0; i < s.rows; i += 2) {
    const PairInput in{s.x + i * a.x_row, s.above + i, s.below + s.rows - 1 - i, a.x_row, a.x_col};
    float* const y = s.y + i * a.y_row;
    // Rows as the next pair meets them, or the next strip.
    const auto ahead = [&](i64 r) {
      const i64 beyond = r - in.below - 1;
      return beyond < 0 ? in.x + r * a.x_row : next.x + (beyond - imin(3, next.above)) * a.x_row;
    };
    const auto out = [&](i64 r) {
      return i + r < s.rows ? s.y + (i + r) * a.y_row : next.y + (i + r - s.rows) * a.y_row;
    };
    const bool two = i + 1 < s.rows;
    Pair p{{}, 0, 0, y, two ? y + a.y_row : nullptr, {ahead(5), ahead(6)}, {out(2), out(3)}};
    if (two) {
      for (i64 g = 0; g < 2; ++g) in.add(p, 4 * g - 2, 4 * g - 1, kNone, kNone, 7 + 2 * g, 8 + 2 * g);
      p.sums = p.size;
      for (i64 g = 0; g < 2; ++g) in.add(p, 4 * g - 3, 4 * g - 1, 4 * g, 4 * g - 2, 4 * g, 4 * g + 2);
      in.add(p, 0, kNone, 1, kNone, 3, 3);
    } else {
      for (i64 r = -3; r <= 0; r += 2) in.add(p, r, kNone, r + 1, kNone, r + 3, r + 4);
    }
    pair_rows(a, s, p);
  }
}

// The rows of taps that m1 and m2 need, from the kernel's.
inline void pair_pack(float* taps) {
  constexpr int V = kLanes<float>;
  for (int g = 0; g < 2; ++g)
    for (int v = 0; v < 7; ++v) {
      const float* const w = taps + (28 * g + v) * V;
      float* const to = taps + (49 + 14 * g + v) * V;
      const Vec<float> half = splat(0.5f), ends = (vload(w) + vload(w + 14 * V)) * half,
                       middle = vload(w + 7 * V) * half;
      vstore(to, ends + middle);
      vstore(to + 7 * V, ends - middle);
    }
}

}  // namespace nhwc
}  // namespace
#endif
