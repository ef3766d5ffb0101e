// Microkernels: a tile of rows by one vector of columns, all sums in registers; the same tap shapes serve the
// convolution (weights times a tile of x) and the weight gradient (a tile of g times x).
#pragma once
#include "multi_dwconv2d/nchw_rows.h"

namespace {
namespace nchw {

// Taps that a microkernel takes together: KH rows, D rows apart, of any number of columns.
enum Kind : int { kRow, k3, k5, k7, k3by2, k3by3, k5by2 };

// Of doubles three rows and two single ones do: for the sake of compile time.
template <class A>
constexpr bool kFiveByTwo = sizeof(A) == 4;

constexpr int kind_rows(int kind) { return kind == kRow ? 1 : kind == k5 || kind == k5by2 ? 5 : kind == k7 ? 7 : 3; }
constexpr int kind_step(int kind) { return kind == k3by2 || kind == k5by2 ? 2 : kind == k3by3 ? 3 : 1; }

struct Part {
  int kind;
  i64 row;            // map row that the first tap meets at output row 0
  i64 height;         // rows of that map
  i64 x;              // where that tap's element lies in scratch for the first output of a region
  i64 cols, step;     // tap columns and their distance in x
  i64 w, wrow, wcol;  // first tap in the packed weights, and the strides of tap rows and columns there
};

// Rows [first, first + TH + (KH - 1) * D) of a map meet a tile; those before its first or beyond its last row are
// zeros and need not be read.
struct Edge {
  bool none, top, bottom;
};
template <int KH, int D, int TH>
LK_HOT Edge edge(const Part& p, i64 i) {
  constexpr i64 R = KH / 2 * D;
  const i64 first = i + p.row;
  return {first + TH + (KH - 1) * D <= 0 || first >= p.height, first + R <= 0, first + TH + R >= p.height};
}

template <int From, int To, int KH, int D, int TH, class V, class A>
LK_HOT void conv_rows(V (&acc)[TH], const V (&k)[KH], const A* x, i64 pitch) {
#pragma GCC unroll 32
  for (int r = From; r < To; ++r) {
    V v = get<V>(x + r * pitch);
    LK_IN_REGISTER(v);
#pragma GCC unroll 8
    for (int u = 0; u < KH; ++u)
      if (r >= u * D && r - u * D < TH) acc[r - u * D] += v * k[u];
  }
}

template <class A>
struct ConvTile {
  const Part* parts;
  i64 count;
  const A *x, *w;  // scratch, packed weights
  A* sums;         // of the tile between one part and the next, a vector after the other
  i64 pitch;
  A init;         // bias
  i64 i, offset;  // output row, and its distance from the region's first in scratch
  A* y;           // first output row
  i64 y_row;
  int rows;    // rows to store, at most TH
  i64 planes;  // images worked on together, and their distances in scratch and in y
  i64 x_plane, y_plane;
};

// Rows and columns of a tile that the output has, from sums. Kept out of the kernel, whose registers are all taken.
template <int L, class A>
__attribute__((noinline)) void put_tile(const ConvTile<A>& t, const A* sums, A* y, i64 n) {
  using V = Vector<A, L* static_cast<int>(sizeof(A))>;
  int r = 0;
  if (t.y_row == n && 2 * n >= L)  // what a row writes too much, the next one, stored later, writes over
    for (; r < t.rows - 1; ++r, y += n) put(y, get<V>(sums + r * L));
  for (; r < t.rows; ++r, y += t.y_row) put_some(y, get<V>(sums + r * L), static_cast<int>(n));
}

// One part over columns [j0, j1) of a tile. The last vector moves back to end at j1, where it fits.
template <int KH, int D, int TH, class V, class A>
__attribute__((noinline)) void conv_part(const ConvTile<A>& t, const Part& p, i64 j0, i64 j1, bool first, bool last) {
  constexpr int R = KH / 2 * D, L = lanes<V, A>;
  Edge e = edge<KH, D, TH>(p, t.i);
  const i64 pitch = t.pitch, wrow = p.wrow, wcol = p.wcol, step = p.step, cols = e.none ? 0 : p.cols;
  const bool full = j1 - j0 >= L, whole = full && t.rows == TH;
  const i64 y_row = t.y_row;
  A* sums = t.sums;
  const A* xs = t.x + p.x + t.offset;
  A* ys = t.y;
  i64 j = j0, left = t.planes;
  for (;; j += L, sums += TH * L) {
    if (j >= j1) {
      if (--left == 0) break;
      j = j0;
      xs += t.x_plane;
      ys += t.y_plane;
    }
    const i64 at = full && j + L > j1 ? j1 - L : j;
    V acc[TH];
    if (first) {
#pragma GCC unroll 8
      for (int r = 0; r < TH; ++r) acc[r] = all<V>(t.init);
    } else {
#pragma GCC unroll 8
      for (int r = 0; r < TH; ++r) acc[r] = get<V>(sums + r * L);
    }
    const A* x = xs + at;
    const A* w = t.w + p.w;
    for (i64 n = cols; n > 0; --n, x += step, w += wcol) {
      V k[KH];
#pragma GCC unroll 8
      for (int u = 0; u < KH; ++u) k[u] = all<V>(w[u * wrow]);
      if (!e.top) conv_rows<0, R, KH, D>(acc, k, x, pitch);
      conv_rows<R, R + TH, KH, D>(acc, k, x, pitch);
      if (!e.bottom) conv_rows<R + TH, TH + (KH - 1) * D, KH, D>(acc, k, x, pitch);
    }
    if (last && whole) {
      A* y = ys + at;
#pragma GCC unroll 8
      for (int r = 0; r < TH; ++r, y += y_row) put(y, acc[r]);
    } else {
#pragma GCC unroll 8
      for (int r = 0; r < TH; ++r) put(sums + r * L, acc[r]);
      if (last) put_tile<L>(t, sums, ys + at, full ? L : j1 - j0);
    }
  }
}

template <int TH, class V, class A>
void conv_tile(const ConvTile<A>& t, i64 j0, i64 j1) {
  if (t.count == 0) return conv_part<1, 1, TH, V>(t, Part{}, j0, j1, true, true);  // only the bias
  for (i64 n = 0; n < t.count; ++n) {
    const Part& p = t.parts[n];
    const bool first = n == 0, last = n + 1 == t.count;
    switch (p.kind) {
      case k3:
        conv_part<3, 1, TH, V>(t, p, j0, j1, first, last);
        break;
      case k5:
        conv_part<5, 1, TH, V>(t, p, j0, j1, first, last);
        break;
      case k7:
        conv_part<7, 1, TH, V>(t, p, j0, j1, first, last);
        break;
      case k3by2:
        conv_part<3, 2, TH, V>(t, p, j0, j1, first, last);
        break;
      case k3by3:
        conv_part<3, 3, TH, V>(t, p, j0, j1, first, last);
        break;
      case k5by2:
        if constexpr (kFiveByTwo<A>) conv_part<5, 2, TH, V>(t, p, j0, j1, first, last);
        break;
      default:
        conv_part<1, 1, TH, V>(t, p, j0, j1, first, last);
    }
  }
}

}  // namespace nchw
}  // namespace
