// NHWC strips of one kernel's outputs, every row by itself: all channels of a block before the next columns.
#pragma once
#include "multi_dwconv2d/nhwc_planes.h"

#if defined(__AVX2__)
namespace {
namespace nhwc {

// Rows of `tiles` times TW columns and `vecs` vectors of channels.
struct Strip {
  const float *x, *w;  // pixel of the first output; packed weights of the first vector: what sums start from, then taps
  float* y;
  i64 rows, vecs, tiles, above, below, left;  // above, below, left: pixels of the map beyond the strip
};
// What strips have in common.
struct Rows {
  i64 width, x_row, x_col, y_row, y_col, slots;
  bool past;  // the caches
};

// Pixels [From, To) of a row of taps.
template <int K, int TW, int From, int To>
LK_INLINE void direct_pixels(Vec<float>* acc, const float*& x, i64 step, const Vec<float>* k) {
  constexpr int R = K / 2;
#pragma GCC unroll 32
  for (int q = From; q < To; ++q, x += step) {
    LK_OPAQUE(x);
    Vec<float> s = vload(x);
    LK_KEEP(s);
#pragma GCC unroll 8
    for (int v = 0; v < K; ++v)
      if (q + R - v >= 0 && q + R - v < TW) acc[q + R - v] = vfma(s, k[v], acc[q + R - v]);
  }
}

// `next`: the strip after this one, whose first rows are fetched with this one's last. Whole: the map is TW wide; else
// there are no pixels beyond a tile, or as many as the kernel reaches.
template <int K, int TW, bool Whole>
__attribute__((noinline)) void direct_strip(const Rows& a, const Strip& s, const Strip& next) {
  constexpr int V = kLanes<float>, R = K / 2;
  constexpr i64 kLineVecs = 64 / kVecBytes;
  const i64 x_row = a.x_row, x_col = a.x_col, y_col = a.y_col, last = s.rows - 1 + imin(R, s.below);
  for (i64 i = 0; i < s.rows; ++i) {
    const i64 from = -imin(R, s.above + i), to = imin(R, s.below + s.rows - 1 - i), row = i + R + 1;
    const float *x = s.x + i * x_row, *out = i + 1 < s.rows ? s.y + (i + 1) * a.y_row : next.y;
    const float* ahead = row <= last ? x + (R + 1) * x_row : next.x + (row - last - 1 - imin(R, next.above)) * x_row;
    for (i64 t = 0; t < s.tiles; ++t) {
      const i64 j = imin(t * TW, a.width - s.left - TW);
      const bool left = !Whole && s.left + j > 0, right = !Whole && s.left + j + TW < a.width;
      const float *at = x + j * x_col, *w = s.w;
      float* y = s.y + i * a.y_row + j * y_col;
      for (i64 n = 0; n < s.vecs; ++n, at += V, y += V, w += a.slots * V) {
        Vec<float> acc[TW];
        const Vec<float> init = vload(w);
#pragma GCC unroll 16
        for (int c = 0; c < TW; ++c) acc[c] = init;
        if (n % kLineVecs == 0) {
          const float *next_x = ahead + j * x_col + n * V, *next_y = out + j * y_col + n * V;
#pragma GCC unroll 16
          for (int c = 0; c < TW; ++c, next_x += x_col) {
            LK_OPAQUE(next_x);
            __builtin_prefetch(next_x, 0, 3);
          }
          if (!a.past)
#pragma GCC unroll 16
            for (int c = 0; c < TW; ++c, next_y += y_col) {
              LK_OPAQUE(next_y);
              __builtin_prefetch(next_y, 1, 3);
            }
        }
        const float *line = at + from * x_row - (left ? R * x_col : 0), *taps = w + (1 + (from + R) * K) * V;
        for (i64 r = from; r <= to; ++r, line += x_row, taps += K * V) {
          Vec<float> k[K];
#pragma GCC unroll 8
          for (int v = 0; v < K; ++v) k[v] = vload(taps + v * V);
          const float* p = line;
          if (left) direct_pixels<K, TW, -R, 0>(acc, p, x_col, k);
          direct_pixels<K, TW, 0, TW>(acc, p, x_col, k);
          if (right) direct_pixels<K, TW, TW, TW + R>(acc, p, x_col, k);
        }
        float* o = y;
        if (a.past)
#pragma GCC unroll 16
          for (int c = 0; c < TW; ++c, o += y_col) {
            LK_OPAQUE(o);
            vstream(o, acc[c]);
          }
        else
#pragma GCC unroll 16
          for (int c = 0; c < TW; ++c, o += y_col) {
            LK_OPAQUE(o);
            vstore(o, acc[c]);
          }
      }
    }
  }
}

}  // namespace nhwc
}  // namespace
#endif
