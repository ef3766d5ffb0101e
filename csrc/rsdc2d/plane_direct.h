// Depthwise microkernels that read planes where they are: lanes beyond the border are masked, rows beyond it are read
// from a line of zeros.
#pragma once
#include "rsdc2d/plane_tile.h"

#if defined(__AVX512F__)
namespace {
namespace rsdc {

constexpr int kReach = 3;  // rows and columns beyond the border, at most
alignas(64) constexpr float kNothing[16] = {};

// A tile of a plane: its first row and column, and the plane's size.
struct DirectTile {
  const Unit *unit, *end;
  i64 row, out_row;
  const float* weights;
  float init;
  bool past;
  i64 rows, columns;
};

template <int Kind, int TH>
LK_INLINE void direct_unit(Vec<float> (&acc)[TH], const float* x, i64 row, const float* weights, i64 first, i64 last,
                           __mmask16 m) {
  constexpr int depth = depth_of(Kind), taps = taps_of(Kind), end = TH + depth;
  Vec<float> k[taps];
#pragma GCC unroll 8
  for (int t = 0; t < taps; ++t) k[t] = every(weights[t]);
#pragma GCC unroll 32
  for (int r = 0; r < end; ++r, x += row) {
    LK_OPAQUE(x);
    Vec<float> v;
    if (r <= kReach || r >= end - 1 - kReach) {
      const float* from = x;
      if (r < kReach) from = r < first ? kNothing : from;
      if (r >= end - kReach) from = r >= last ? kNothing : from;
      v = (Vec<float>)_mm512_maskz_loadu_ps(m, from);
    } else {
      v = vload(x);
    }
    if (taps > 1) LK_KEEP(v);
    int t = 0;
#pragma GCC unroll 8
    for (int d = 0; d <= depth; ++d) {
      if (!has_tap(Kind, d)) continue;
      if (r >= d && r - d < TH)
        acc[r - d] = (Vec<float>)_mm512_mask3_fmadd_ps((__m512)v, (__m512)k[t], (__m512)acc[r - d], m);
      ++t;
    }
  }
}

// Lanes of a vector at column j that lie in a plane of n columns.
LK_INLINE __mmask16 lanes_inside(i64 j, i64 n) {
  const unsigned from = j < 0 ? ~0u << -j : ~0u, to = n - j < 16 ? (1u << (n - j)) - 1 : ~0u;
  return static_cast<__mmask16>(from & to);
}

template <int TH>
__attribute__((noinline)) void direct_tile(const DirectTile& a, const float* plane, i64 i, i64 j, float* out,
                                           const float* next, const float* next_out) {
  Vec<float> acc[TH];
#pragma GCC unroll 16
  for (int r = 0; r < TH; ++r) acc[r] = every(a.init);
  for (const Unit *u = a.unit, *end = a.end; u != end; ++u) {
    const i64 top = i + u->down, left = j + u->across;
    const float *const at = plane + (top * a.row + left), *const weights = a.weights + u->first;
    const __mmask16 m = lanes_inside(left, a.columns);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r, next += a.row, next_out += a.out_row) {
      __builtin_prefetch(next, 0, 3);
      __builtin_prefetch(next_out, 1, 3);
    }
    switch (u->kind) {
#define LK_KIND(kind)                                                      \
  case kind:                                                               \
    direct_unit<kind, TH>(acc, at, a.row, weights, -top, a.rows - top, m); \
    break;
      LK_UNIT_KINDS(LK_KIND)
#undef LK_KIND
    }
  }
  if (a.past) {
#pragma GCC unroll 16
    for (int r = 0; r < TH; ++r, out += a.out_row) vstream(out, acc[r]);
  } else {
#pragma GCC unroll 16
    for (int r = 0; r < TH; ++r, out += a.out_row) vstore(out, acc[r]);
  }
}

}  // namespace rsdc
}  // namespace
#endif
