// Microkernels: a tile of rows by one vector of columns, all sums in registers; the same tap shapes serve the
// convolution (weights times a tile of x) and the weight gradient (a tile of g times x).
#pragma once
#include "multi_dwconv2d/nchw_rows.h"

namespace {
namespace nchw {

// Taps that a microkernel takes together: KH rows, D rows apart, of any number of columns.
enum Kind : int { kRow, k3, k5, k7, k3by2, k3by3 };

constexpr int kind_rows(int kind) { return kind == kRow ? 1 : kind == k5 ? 5 : kind == k7 ? 7 : 3; }
constexpr int kind_step(int kind) { return kind == k3by2 ? 2 : kind == k3by3 ? 3 : 1; }

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

template <int KH, int D, int TH, class V, class A>
LK_HOT void conv_part(V (&acc)[TH], const Part& p, const A* x, const A* w, i64 pitch, i64 i) {
  constexpr int R = KH / 2 * D;
  const Edge e = edge<KH, D, TH>(p, i);
  if (e.none) return;
  const i64 wrow = p.wrow, wcol = p.wcol, step = p.step;
  for (i64 n = p.cols; n > 0; --n, x += step, w += wcol) {
    V k[KH];
#pragma GCC unroll 8
    for (int u = 0; u < KH; ++u) k[u] = V{} + w[u * wrow];
    if (!e.top) conv_rows<0, R, KH, D>(acc, k, x, pitch);
    conv_rows<R, R + TH, KH, D>(acc, k, x, pitch);
    if (!e.bottom) conv_rows<R + TH, TH + (KH - 1) * D, KH, D>(acc, k, x, pitch);
  }
}

template <class A>
struct ConvTile {
  const Part* parts;
  i64 count;
  const A *x, *w;  // scratch, packed weights
  i64 pitch;
  A init;         // bias
  i64 i, offset;  // output row, and its distance from the region's first in scratch
  A* y;           // first output row
  i64 y_row;
  int rows;  // rows to store, at most TH
};

// Columns [j0, j1) of a tile. The last vector moves back to end at j1, where it fits.
template <int TH, class V, class A>
void conv_tile(const ConvTile<A>& t, i64 j0, i64 j1) {
  constexpr int L = lanes<V, A>;
  for (i64 j = j0; j < j1; j += L) {
    const bool full = j1 - j0 >= L;
    const i64 at = full && j + L > j1 ? j1 - L : j;
    V acc[TH];
#pragma GCC unroll 8
    for (int r = 0; r < TH; ++r) acc[r] = V{} + t.init;
    for (i64 n = 0; n < t.count; ++n) {
      const Part& p = t.parts[n];
      const A* x = t.x + p.x + t.offset + at;
      const A* w = t.w + p.w;
      switch (p.kind) {
        case k3:
          conv_part<3, 1>(acc, p, x, w, t.pitch, t.i);
          break;
        case k5:
          conv_part<5, 1>(acc, p, x, w, t.pitch, t.i);
          break;
        case k7:
          conv_part<7, 1>(acc, p, x, w, t.pitch, t.i);
          break;
        case k3by2:
          conv_part<3, 2>(acc, p, x, w, t.pitch, t.i);
          break;
        case k3by3:
          conv_part<3, 3>(acc, p, x, w, t.pitch, t.i);
          break;
        default:
          conv_part<1, 1>(acc, p, x, w, t.pitch, t.i);
      }
    }
    A* y = t.y + at;
#pragma GCC unroll 8
    for (int r = 0; r < TH; ++r, y += t.y_row) {
      if (r >= t.rows) break;
      if (full)
        put(y, acc[r]);
      else
        put_some(y, acc[r], static_cast<int>(j1 - j0));
    }
  }
}

}  // namespace nchw
}  // namespace
