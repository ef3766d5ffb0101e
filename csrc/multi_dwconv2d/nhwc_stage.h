// NHWC: copies rows of one channel block into scratch as accumulators, zeros where the image ends.
#pragma once
#include "multi_dwconv2d/nhwc_planes.h"

namespace {
namespace nhwc {

constexpr std::size_t kThreadBytes = 1u << 20;  // scratch of one thread
constexpr i64 kRowsGrain = 128;                 // pixels of a row, or of several short rows, computed at once
constexpr i64 kPlanesGrain = 256;               // the same of planes: small maps at once
constexpr i64 kRingBytes = 512 << 10;           // of which staged rows at most
constexpr i64 kWeightBytes = 320 << 10;         // and packed weights of one channel block

// Vectors of a channel block: enough that a pixel's block fills a cache line.
template <class T>
constexpr int kBlockVecs =
    64 / (kLanes<Acc<T>> * static_cast<int>(sizeof(T))) > 1 ? 64 / (kLanes<Acc<T>> * static_cast<int>(sizeof(T))) : 1;

template <class T, int F>
LK_INLINE void copy_full(const T* src, i64 step, Acc<T>* dst, i64 vec, i64 n) {
  constexpr int V = kLanes<Acc<T>>;
  for (i64 i = 0; i < n; ++i, src += step, dst += V) {
#pragma GCC unroll 4
    for (int f = 0; f < F; ++f) vstore(dst + f * vec, vload(src + f * V));
  }
}

// n pixels of `channels` channels, `step` elements apart; vector f goes to dst + f * vec.
template <class T>
void copy_pixels(const T* src, i64 step, Acc<T>* dst, i64 vec, i64 n, i64 channels) {
  constexpr int V = kLanes<Acc<T>>;
  for (; channels >= 4 * V; channels -= 4 * V, src += 4 * V, dst += 4 * vec) copy_full<T, 4>(src, step, dst, vec, n);
  if (channels >= 2 * V) {
    copy_full<T, 2>(src, step, dst, vec, n);
    channels -= 2 * V, src += 2 * V, dst += 2 * vec;
  }
  if (channels >= V) {
    copy_full<T, 1>(src, step, dst, vec, n);
    channels -= V, src += V, dst += vec;
  }
  if (channels > 0)
    for (i64 i = 0; i < n; ++i, src += step, dst += V) vstore(dst, vload(src, static_cast<int>(channels)));
}

template <class A>
void zero_pixels(A* dst, i64 vec, i64 n, int vecs) {
  for (int f = 0; f < vecs; ++f)
    for (i64 i = 0; i < n; ++i) vstore(dst + f * vec + i * kLanes<A>, Vec<A>{});
}

template <class A>
i64 ring_bytes(const Plan& g, const Ring<A>& r) {
  return ring_elements(g, r) * static_cast<i64>(sizeof(A));
}

// Rows at once: enough columns that a visit to a channel's sums or weights pays, in equal steps down the image.
inline int rows_at_once(const Plan& g) {
  const i64 grain = g.planar ? kPlanesGrain : kRowsGrain;
  const i64 most = grain / g.cols > 1 ? grain / g.cols : 1, steps = (g.rows + most - 1) / most;
  return static_cast<int>((g.rows + steps - 1) / steps);
}

// The same of planes that begin on lines of memory: whole lines, which can go past the caches.
template <class T>
int lines_at_once(const Plan& g) {
  const int rows = rows_at_once(g);
  int line = 64 / static_cast<int>(sizeof(T));  // rows that are whole lines
  for (i64 n = g.cols; n % 2 == 0 && line > 1; n /= 2) line /= 2;
  const int whole = (rows + line - 1) / line * line;
  return rows < g.rows && g.rows % line == 0 && whole * g.cols <= 2 * kPlanesGrain ? whole : rows;
}

// Channel blocks of `vecs` vectors; where their rows are too long for the scratch, grid columns are cut into panels.
template <class T>
Ring<Acc<T>> rows_ring(Plan& g, int vecs, int rows) {
  using A = Acc<T>;
  const Ring<A> whole = ring_of<A>(g, g.cols, vecs, rows);
  if (ring_bytes(g, whole) <= kRingBytes) return whole;
  const Ring<A> r = ring_of<A>(g, g.cols, vecs, 1);
  const i64 a_column = ring_bytes(g, r) / r.class_cols, halo = r.class_cols - r.panel;
  const i64 panel = (kRingBytes / a_column - halo) / kTile<A> * kTile<A>;
  return ring_of<A>(g, imin(panel < 2 * kTile<A> ? 2 * kTile<A> : panel, g.cols), vecs, 1);
}

// As many channels at once as the scratch holds, so that memory is read and written in order. `units` pieces of work
// besides channel blocks exist for `threads`.
template <class T>
Ring<Acc<T>> fit_ring(Plan& g, i64 units, int threads) {
  using A = Acc<T>;
  constexpr int V = kLanes<A>, line = kBlockVecs<T>;
  if (g.planar) return rows_ring<T>(g, line, lines_at_once<T>(g));
  const int need = static_cast<int>((g.channels + V - 1) / V), lines = (need + line - 1) / line;
  const int rows = rows_at_once(g);
  const i64 a_line = ring_bytes(g, ring_of<A>(g, g.cols, line, rows));
  if (a_line > kRingBytes) return rows_ring<T>(g, imin(line, need), rows);
  const i64 weights = static_cast<i64>(g.slots) * kVecBytes * line;
  int fit = imin(lines, kRingBytes / a_line);
  fit = imin(fit, kWeightBytes / weights > 0 ? kWeightBytes / weights : 1);
  int most = fit;
  for (; most > 0; --most) {
    const i64 pieces = units * ((lines + most - 1) / most);
    if (pieces % threads == 0 || pieces >= 4 * threads) break;
  }
  const int blocks = (lines + (most ? most : fit) - 1) / (most ? most : fit);
  return rows_ring<T>(g, imin(need, (lines + blocks - 1) / blocks * line), rows);
}

// One image row, `src` at its column 0, into a staged row whose first column is image column q0. With `pads` the
// columns outside the image are written too.
template <class T>
void stage_row(const T* src, i64 step, i64 width, i64 q0, i64 classes, i64 class_cols, Acc<T>* dst, i64 vec,
               i64 channels, bool pads) {
  constexpr int V = kLanes<Acc<T>>;
  const int vecs = static_cast<int>((channels + V - 1) / V);
  for (i64 c = 0; c < classes; ++c, dst += class_cols * V) {
    const i64 first = q0 + c;  // image column of this class's column 0
    i64 lo = first < 0 ? (-first + classes - 1) / classes : 0;
    i64 hi = width > first ? (width - first + classes - 1) / classes : 0;
    if (lo > class_cols) lo = class_cols;
    if (hi > class_cols) hi = class_cols;
    if (hi < lo) hi = lo;
    if (pads) zero_pixels(dst, vec, lo, vecs);
    if (hi > lo)
      copy_pixels<T>(src + (first + lo * classes) * step, classes * step, dst + lo * V, vec, hi - lo, channels);
    if (pads) zero_pixels(dst + hi * V, vec, class_cols - hi, vecs);
  }
}

// The staged rows of all planes for one channel block of one image; each row is staged once as the grid row advances.
template <class T>
struct Stage {
  using A = Acc<T>;
  const Plan& g;
  const Ring<A>& r;
  A* rows;      // all rings
  A** base;     // of each plane's ring
  i64* next;    // first row not yet staged
  int* slot;    // ring slot of kernel row 0 at the current grid row
  bool panels;  // else all rows end at the same columns, and the zeros there are written once

  void take(Arena& a) {
    rows = a.take<A>(ring_elements(g, r));
    base = a.take<A*>(g.planes);
    next = a.take<i64>(g.planes);
    slot = a.take<int>(g.planes);
    A* at = rows;
    for (int q = 0; q < g.planes && rows; ++q) {
      base[q] = at;
      at += g.plane[q].ring * r.row;
    }
  }

  void prepare() {
    panels = r.panel < g.cols;
    if (!panels)
      for (i64 i = 0, n = ring_elements(g, r); i < n; i += kLanes<A>) vstore(rows + i, Vec<A>{});
  }
  void start(i64 i) {
    for (int q = 0; q < g.planes; ++q) {
      const i64 row = i * g.in_step_h + g.plane[q].lo;
      next[q] = row > 0 ? row : 0;
      const int at = static_cast<int>(row % g.plane[q].ring);
      slot[q] = at < 0 ? at + g.plane[q].ring : at;
    }
  }
  // Everything grid row i needs; `src` at the block's first channel of the image, `j0` the panel's first grid column.
  void fill(const T* src, i64 i, i64 j0, i64 channels) {
    for (int q = 0; q < g.planes; ++q) {
      const Plane& f = g.plane[q];
      i64 last = i * g.in_step_h + f.hi;
      if (last >= g.in_h) last = g.in_h - 1;
      if constexpr (kTransposes<T>)
        if (g.planar) {
          fill_planes(src + f.channel * g.in.c, q, last, channels);
          continue;
        }
      for (; next[q] <= last; ++next[q]) {
        const i64 row = next[q];
        stage_row<T>(src + f.channel + row * g.in.h, g.in.w, g.in_w, j0 * g.in_step_w + g.lo_c, g.in_step_w,
                     r.class_cols, base[q] + row % f.ring * r.row, r.vec, channels, panels);
      }
    }
  }
  // The same from planes, in as few pieces as the ring's end allows.
  void fill_planes(const T* src, int q, i64 last, i64 channels) {
    const i64 ring = g.plane[q].ring;
    while (next[q] <= last) {
      const i64 row = next[q], slot = row % ring;
      const i64 rows = last + 1 - row < ring - slot ? last + 1 - row : ring - slot;
      read_planes<T>(src + row * g.in.h, g.in.c, rows, g.in_w, channels, base[q] + slot * r.row - g.lo_c * kLanes<A>,
                     r.row, r.vec);
      next[q] += rows;
    }
  }
  void advance(i64 grid_rows) {
    for (int q = 0; q < g.planes; ++q) {
      slot[q] += static_cast<int>(grid_rows * g.in_step_h);
      while (slot[q] >= g.plane[q].ring) slot[q] -= g.plane[q].ring;
    }
  }
  const A* at(int q, int row) const {
    int k = slot[q] + row;
    if (k >= g.plane[q].ring) k -= g.plane[q].ring;
    return base[q] + k * r.row;
  }
};

}  // namespace nhwc
}  // namespace
