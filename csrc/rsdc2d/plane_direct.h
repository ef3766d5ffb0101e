// Depthwise microkernels that read planes where they are: lanes beyond the border are masked, rows beyond it are read
// from a line of zeros.
#pragma once
#include "rsdc2d/plane_tile.h"

#if defined(__AVX512F__)
namespace {
namespace rsdc {

constexpr int kReach = 3;       // rows and columns beyond the border, at most
constexpr int kTilesAhead = 3;  // that cache lines are asked for
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

// Row r of `end` that a unit reads; those before `first` and from `last` on are none of the plane's.
LK_INLINE Vec<float> direct_row(const float* x, int r, int end, i64 first, i64 last, __mmask16 m) {
  if (r > kReach && r < end - 1 - kReach) return vload(x);
  if (r < kReach) x = r < first ? kNothing : x;
  if (r >= end - kReach) x = r >= last ? kNothing : x;
  return (Vec<float>)_mm512_maskz_loadu_ps(m, x);
}
LK_INLINE Vec<float> add_inside(Vec<float> sum, Vec<float> a, Vec<float> b, __mmask16 m) {
  return (Vec<float>)_mm512_mask3_fmadd_ps((__m512)a, (__m512)b, (__m512)sum, m);
}
// Asks for the next four rows of two maps.
template <int Write>
LK_INLINE void ask(const float*& a, i64 a_row, const float*& b, i64 b_row) {
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r, a += a_row, b += b_row) {
    __builtin_prefetch(a, 0, 3);
    __builtin_prefetch(b, Write, 3);
  }
}

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
    Vec<float> v = direct_row(x, r, end, first, last, m);
    if (taps > 1) LK_KEEP(v);
    int t = 0;
#pragma GCC unroll 8
    for (int d = 0; d <= depth; ++d) {
      if (!has_tap(Kind, d)) continue;
      if (r >= d && r - d < TH) acc[r - d] = add_inside(acc[r - d], v, k[t], m);
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
    ask<1>(next, a.row, next_out, a.out_row);
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

// As direct_unit(), for the weight gradient: `g` times what each tap reads.
template <int Kind, int TH>
LK_INLINE void direct_unit_sums(const Vec<float> (&g)[TH], const float* x, i64 row, float* sums, i64 first, i64 last,
                                __mmask16 m) {
  constexpr int depth = depth_of(Kind), taps = taps_of(Kind), end = TH + depth, V = kLanes<float>;
  constexpr int chains = taps == 1 ? 4 : 2;  // of sums, that keep the multiply-adds busy
  Vec<float> acc[taps][chains];
#pragma GCC unroll 8
  for (int t = 0; t < taps; ++t)
#pragma GCC unroll 4
    for (int c = 0; c < chains; ++c) acc[t][c] = Vec<float>{};
#pragma GCC unroll 32
  for (int r = 0; r < end; ++r, x += row) {
    LK_OPAQUE(x);
    const Vec<float> v = direct_row(x, r, end, first, last, m);
    int t = 0;
#pragma GCC unroll 8
    for (int d = 0; d <= depth; ++d) {
      if (!has_tap(Kind, d)) continue;
      if (r >= d && r - d < TH) acc[t][r % chains] = add_inside(acc[t][r % chains], v, g[r - d], m);
      ++t;
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < taps; ++t) {
#pragma GCC unroll 4
    for (int c = chains / 2; c; c /= 2)
#pragma GCC unroll 2
      for (int i = 0; i < c; ++i) acc[t][i] += acc[t][i + c];
    vstore(sums + t * V, vload(sums + t * V) + acc[t][0]);
  }
}

// `sums`: a vector each tap. Of the gradient's rows and columns, the first ones belong to another tile.
template <int TH>
__attribute__((noinline)) void direct_sums(const DirectTile& a, const float* plane, i64 i, i64 j, const float* from,
                                           i64 rows_done, i64 columns_done, float* sums, const float* next,
                                           const float* next_from) {
  Vec<float> g[TH];
  const __mmask16 own = static_cast<__mmask16>(~0u << columns_done);
#pragma GCC unroll 16
  for (int r = 0; r < TH; ++r, from += a.out_row) {
    const __mmask16 m = r < rows_done ? __mmask16(0) : own;
    g[r] = (Vec<float>)_mm512_maskz_loadu_ps(m, from);
  }
  for (const Unit *u = a.unit, *end = a.end; u != end; ++u) {
    const i64 top = i + u->down, left = j + u->across;
    const float* const at = plane + (top * a.row + left);
    float* const to = sums + u->first * kLanes<float>;
    const __mmask16 m = lanes_inside(left, a.columns);
    ask<0>(next, a.row, next_from, a.out_row);
    switch (u->kind) {
#define LK_KIND(kind)                                                    \
  case kind:                                                             \
    direct_unit_sums<kind, TH>(g, at, a.row, to, -top, a.rows - top, m); \
    break;
      LK_UNIT_KINDS(LK_KIND)
#undef LK_KIND
    }
  }
}

// The tiles of a plane.
struct TileWalk {
  i64 h, w, i, j;
  bool tall;
  TileWalk(i64 rows, i64 columns) : h(rows), w(columns), i(0), j(0), tall(false) { choose(); }
  void choose() { tall = h - i > kShort && h >= kTall; }
  i64 top() const { return smaller(i, h - (tall ? kTall : kShort)); }
  i64 left() const { return smaller(j, w - kLanes<float>); }
  bool at_first() const { return i == 0 && j == 0; }
  void advance() {  // from the last one, to the first
    j += kLanes<float>;
    if (j < w) return;
    j = 0;
    i += tall ? kTall : kShort;
    if (i >= h) i = 0;
    choose();
  }
};

}  // namespace rsdc
}  // namespace
#endif
