// Depthwise microkernels that read planes where they are: lanes beyond the border are masked, rows beyond it are read
// from a line of zeros.
#pragma once
#include "rsdc2d/plane_tile.h"

#if defined(__AVX512F__)
namespace {
namespace rsdc {

constexpr int kReach = 3;                // rows and columns beyond the border, at most
constexpr int kMostRight = 32;           // columns that a tap lies to the right of its output, at most
constexpr int kHigh = 28, kLow = kTall;  // rows of a tile of outputs: with the weights of three taps, all registers
constexpr int kHighSums = 24;            // rows of a tile of gradients: with two chains of sums of three taps, too
constexpr i64 kAhead = 16;               // rows, besides a tile's, that cache lines are asked for ahead
alignas(64) constexpr float kNothing[16] = {};

// A tile of a plane: its first row and column, and the plane's size.
struct DirectTile {
  const Unit *unit, *end;  // `at`: from the first row and column that taps may read
  i64 row, out_row;
  const float* weights;
  float init;
  bool past;
  i64 rows, columns, lo;  // lo: the first row's shift
};

template <class V>
LK_INLINE V get(const float* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
LK_INLINE V get_inside(const float* p, __mmask16 m) {
  if constexpr (sizeof(V) == 64)
    return (V)_mm512_maskz_loadu_ps(m, p);
  else
    return (V)_mm256_maskz_loadu_ps(static_cast<__mmask8>(m), p);
}
template <class V>
LK_INLINE V add_inside(V sum, V a, V b, __mmask16 m) {
  if constexpr (sizeof(V) == 64)
    return (V)_mm512_mask3_fmadd_ps((__m512)a, (__m512)b, (__m512)sum, m);
  else
    return (V)_mm256_mask3_fmadd_ps((__m256)a, (__m256)b, (__m256)sum, static_cast<__mmask8>(m));
}
// Row r of `end` that a unit reads; those before `first` and from `last` on are none of the plane's.
template <class V>
LK_INLINE V direct_row(const float* x, int r, int end, i64 first, i64 last, __mmask16 m) {
  if (r > kReach && r < end - 1 - kReach) return get<V>(x);
  if (r < kReach) x = r < first ? kNothing : x;
  if (r >= end - kReach) x = r >= last ? kNothing : x;
  return get_inside<V>(x, m);
}
// Asks for the next cache lines of two maps.
template <int Write, int N>
LK_INLINE void ask(const float*& a, const float*& b) {
#pragma GCC unroll 8
  for (int r = 0; r < N; ++r, a += 16, b += 16) {
    __builtin_prefetch(a, 0, 3);
    __builtin_prefetch(b, Write, 3);
  }
}
// Lanes of a vector at column j that lie in a plane of n columns, if it is moved by t: from bit 8 + t on.
LK_INLINE std::uint64_t lanes_inside(i64 j, i64 n) {
  return (j < 8 ? ~std::uint64_t(0) << (8 - j) : ~std::uint64_t(0)) &
         (n - j < 56 ? (std::uint64_t(1) << (n - j + 8)) - 1 : ~std::uint64_t(0));
}

// Halves: a vector that lies in two cache lines occupies the queue of stores for longer than two of them.
template <class V>
LK_INLINE void store_row(float* to, V v, bool past) {
  if constexpr (sizeof(V) == 64) {
    if (past) return vstream(to, v);
    _mm256_storeu_ps(to, _mm512_castps512_ps256((__m512)v));
    _mm256_storeu_ps(to + 8, _mm512_extractf32x8_ps((__m512)v, 1));
  } else {
    __builtin_memcpy(to, &v, sizeof(V));
  }
}

// End: the tile's last unit, which writes its rows.
template <int Kind, int TH, bool End, class V>
LK_INLINE void direct_unit(V (&acc)[TH], const DirectTile& a, const float* x, const float* weights, i64 first, i64 last,
                           __mmask16 m, float* out) {
  constexpr int depth = depth_of(Kind), taps = taps_of(Kind), end = TH + depth;
  V k[taps];
#pragma GCC unroll 8
  for (int t = 0; t < taps; ++t) k[t] = weights[t] - V{};
#pragma GCC unroll 32
  for (int r = 0; r < end; ++r, x += a.row) {
    LK_OPAQUE(x);
    V v = direct_row<V>(x, r, end, first, last, m);
    if (taps > 1) LK_KEEP(v);
    int t = 0;
#pragma GCC unroll 8
    for (int d = 0; d <= depth; ++d) {
      if (!has_tap(Kind, d)) continue;
      if (r >= d && r - d < TH) acc[r - d] = add_inside(acc[r - d], v, k[t], m);
      ++t;
    }
    if (End && r >= depth) {
      store_row(out, acc[r - depth], a.past);
      out += a.out_row;
      LK_OPAQUE(out);
    }
  }
}

template <int TH, class V>
__attribute__((noinline)) void direct_tile(const DirectTile& tile, const float* plane, i64 i, i64 j, float* out,
                                           const float* next, const float* next_out) {
  const DirectTile a = tile;
  V acc[TH];
#pragma GCC unroll 32
  for (int r = 0; r < TH; ++r) acc[r] = a.init - V{};
  const std::uint64_t lanes = lanes_inside(j, a.columns);
  const float* const from = plane + ((i + a.lo) * a.row + j);
  const i64 last = a.rows - i;
  for (const Unit *u = a.unit, *end = a.end; u != end; ++u) {
    const float *const at = from + u->at, *const weights = a.weights + u->first;
    const i64 down = u->down;
    const __mmask16 m = static_cast<__mmask16>(lanes >> (8 + u->across));
    ask<1, TH / 4>(next, next_out);
    if (u + 1 == end) switch (u->kind) {
#define LK_KIND(kind) \
  case kind:          \
    return direct_unit<kind, TH, true, V>(acc, a, at, weights, -i - down, last - down, m, out);
        LK_END_KINDS(LK_KIND)
#undef LK_KIND
      }
    switch (u->kind) {
#define LK_KIND(kind)                                                                         \
  case kind:                                                                                  \
    direct_unit<kind, TH, false, V>(acc, a, at, weights, -i - down, last - down, m, nullptr); \
    break;
      LK_UNIT_KINDS(LK_KIND)
#undef LK_KIND
    }
  }
#pragma GCC unroll 32
  for (int r = 0; r < TH; ++r, out += a.out_row) store_row(out, acc[r], a.past);
}

// As direct_unit(), for the weight gradient: `g` times what each tap reads.
template <int Kind, int TH>
LK_INLINE void direct_unit_sums(const Vec<float> (&g)[TH], const float* x, i64 row, float* sums, i64 first, i64 last,
                                __mmask16 m) {
  constexpr int depth = depth_of(Kind), taps = taps_of(Kind), end = TH + depth;
  constexpr int chains = taps == 1 ? 4 : 2;  // of sums, that keep the multiply-adds busy
  Vec<float> acc[taps][chains];
#pragma GCC unroll 8
  for (int t = 0; t < taps; ++t)
#pragma GCC unroll 4
    for (int c = 0; c < chains; ++c) acc[t][c] = Vec<float>{};
#pragma GCC unroll 32
  for (int r = 0; r < end; ++r, x += row) {
    LK_OPAQUE(x);
    const Vec<float> v = direct_row<Vec<float>>(x, r, end, first, last, m);
    int t = 0;
#pragma GCC unroll 8
    for (int d = 0; d <= depth; ++d) {
      if (!has_tap(Kind, d)) continue;
      if (r >= d && r - d < TH) acc[t][r % chains] = add_inside(acc[t][r % chains], v, g[r - d], m);
      ++t;
    }
  }
  add_chains(sums, acc);
}

// `sums`: a vector each tap. Of the gradient's rows and columns, the first ones belong to another tile.
template <int TH>
__attribute__((noinline)) void direct_sums(const DirectTile& a, const float* plane, i64 i, i64 j, const float* from,
                                           i64 rows_done, i64 columns_done, float* sums, const float* next,
                                           const float* next_from) {
  Vec<float> g[TH];
  const __mmask16 own = static_cast<__mmask16>(~0u << columns_done);
#pragma GCC unroll 32
  for (int r = 0; r < TH; ++r, from += a.out_row) {
    const __mmask16 m = r < rows_done ? __mmask16(0) : own;
    g[r] = (Vec<float>)_mm512_maskz_loadu_ps(m, from);
  }
  const std::uint64_t lanes = lanes_inside(j, a.columns);
  const float* const at_first = plane + ((i + a.lo) * a.row + j);
  const i64 row = a.row, last = a.rows - i;
  for (const Unit *u = a.unit, *end = a.end; u != end; ++u) {
    const float* const at = at_first + u->at;
    ask<0, 4>(next, next_from);
    float* const to = sums + u->first * kLanes<float>;
    const i64 down = u->down;
    const __mmask16 m = static_cast<__mmask16>(lanes >> (8 + u->across));
    switch (u->kind) {
#define LK_KIND(K)                                                      \
  case K:                                                               \
    direct_unit_sums<K, TH>(g, at, row, to, -i - down, last - down, m); \
    break;
      LK_UNIT_KINDS(LK_KIND)
#undef LK_KIND
    }
  }
}

// The tiles of a plane, along rows of tiles, each `high` or `low` rows of the plane.
struct TileWalk {
  i64 h, w, i, j, high, low, highs, height;
  TileWalk(i64 rows, i64 columns, i64 high_, i64 low_)
      : h(rows), w(columns), i(0), j(0), high(high_), low(low_), highs(0), height(0) {
    constexpr i64 more = 5;  // what a tile takes besides its rows, counted in rows; measured
    i64 best = ceil_div(h, low) * (low + more);
    for (i64 k = 1; k * high <= h; ++k) {
      const i64 cost = k * (high + more) + ceil_div(h - k * high, low) * (low + more);
      if (cost < best) best = cost, highs = k;
    }
    choose();
  }
  void choose() { height = i < highs * high ? high : low; }
  bool slim() const { return w - j <= kLanes<float> / 2; }  // what is left of the columns fills half a vector
  i64 top() const { return smaller(i, h - height); }
  i64 left(i64 lanes) const { return smaller(j, w - lanes); }
  bool at_first() const { return i == 0 && j == 0; }
  // Where cache lines are asked for: some way on in a plane, or in the one that follows it.
  const float* ahead(const float* plane, const float* next, i64 row, i64 rows) const {
    const i64 at = (i + height + kAhead) * row + j * height, size = rows * row;
    return at < size ? plane + at : next + smaller(at - size, size);
  }
  void advance() {  // from the last one, to the first
    j += kLanes<float>;
    if (j < w) return;
    j = 0;
    i += height;
    if (i >= h) i = 0;
    choose();
  }
};

}  // namespace rsdc
}  // namespace
#endif
