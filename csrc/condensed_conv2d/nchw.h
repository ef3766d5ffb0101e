// NCHW: pixels in the vector. A group's picked maps are scaled and activated into a panel of a few vectors of pixels,
// from which blocks of the group's outputs are summed up in registers and stored where the shuffle puts them.
#pragma once
#include "condensed_conv2d/kernel_cpu.h"

namespace {
namespace condensed {

#if defined(__AVX512F__)
constexpr int kRows = 8, kVectors = 2;
#else
constexpr int kRows = 4, kVectors = 2;
#endif
constexpr i64 kTile = 64;  // pixels of a panel
constexpr i64 kAhead = 8;  // maps are picked in no order that the processor could foresee

template <class A, int R, int V>
LK_INLINE void put(const Vec<A> (&sum)[R][V], A* out, i64 step, int last) {
  constexpr int L = kLanes<A>;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r, out += step) {
#pragma GCC unroll 4
    for (int v = 0; v + 1 < V; ++v) vstore(out + v * L, sum[r][v]);
    if (last == L)
      vstore(out + (V - 1) * L, sum[r][V - 1]);
    else
      vstore(out + (V - 1) * L, sum[r][V - 1], last);
  }
}

// out[r * step + pixel]: R outputs of V vectors of pixels; the last vector has `last` of them. Panel [K][V]; rows of w
// are `row` apart.
template <class A, int R, int V>
void rows(i64 picked, const A* panel, const A* w, i64 row, A* out, i64 step, int last) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[R][V] = {};
  for (i64 k = 0; k < picked; ++k, panel += V * L) {
    Vec<A> a[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      a[v] = vload(panel + v * L);
      LK_KEEP(a[v]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<A> b = splat<A>(w[r * row + k]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = vfma(a[v], b, sum[r][v]);
    }
  }
  put<A, R, V>(sum, out, step, last);
}

// All outputs of a group over V vectors of pixels, in blocks of kRows, then halves of that.
template <class T, int R, int V>
void blocks(i64 left, i64 picked, const Acc<T>* panel, const Acc<T>* w, i64 row, T* out, i64 step, int last,
            Acc<T>* made) {
  using A = Acc<T>;
  constexpr int L = kLanes<A>;
  for (; left >= R; left -= R, w += R * row, out += R * step) {
    if constexpr (sizeof(T) == sizeof(A)) {
      rows<A, R, V>(picked, panel, w, row, out, step, last);
    } else {
      rows<A, R, V>(picked, panel, w, row, made, V * L, L);
      for (int r = 0; r < R; ++r) store_row<T>(made + r * V * L, (V - 1) * L + last, out + r * step);
    }
  }
  if constexpr (R > 1) {
    if (left) blocks<T, R / 2, V>(left, picked, panel, w, row, out, step, last, made);
  }
}

template <class T, int V>
void panel(const Params& p, const T* x, const i64* index, const Acc<T>* scale, const Acc<T>* shift, int last,
           Acc<T>* to) {
  using A = Acc<T>;
  constexpr int L = kLanes<A>;
  for (i64 k = 0; k < p.picked; ++k, to += V * L) {
    const T* from = x + index[k] * p.channel;
    if (k + kAhead < p.picked) {
      const T* const later = x + index[k + kAhead] * p.channel;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) __builtin_prefetch(later + v * L);
    }
    const Vec<A> s = splat<A>(scale[k]), b = splat<A>(shift[k]);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const Vec<A> one = v + 1 < V || last == L ? vload(from + v * L) : vload(from + v * L, last);
      vstore(to + v * L, activate<A>(vfma(one, s, b), p.act));
    }
  }
}

// A group of R outputs: the picked maps go through registers alone.
template <class A, int R, int V>
void direct(const Params& p, const A* x, const i64* index, const A* scale, const A* shift, const A* w, A* out, i64 step,
            int last) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[R][V] = {};
  const i64 row = p.groups * p.picked;
  for (i64 k = 0; k < p.picked; ++k) {
    const A* from = x + index[k] * p.channel;
    if (k + kAhead < p.picked) {
      const A* const later = x + index[k + kAhead] * p.channel;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) __builtin_prefetch(later + v * L);
    }
    const Vec<A> s = splat<A>(scale[k]), b = splat<A>(shift[k]);
    Vec<A> a[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const Vec<A> one = v + 1 < V || last == L ? vload(from + v * L) : vload(from + v * L, last);
      a[v] = activate<A>(vfma(one, s, b), p.act);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<A> factor = splat<A>(w[r * row + k]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = vfma(a[v], factor, sum[r][v]);
    }
  }
  put<A, R, V>(sum, out, step, last);
}

template <class T, int V>
void tile(const Params& p, i64 g, const T* x, const Acc<T>* w, const Acc<T>* scale, const Acc<T>* shift, T* y, int last,
          Acc<T>* room) {
  const i64 each = p.co / p.groups;
  const i64* const index = p.index + g * p.picked;
  scale += g * p.picked;
  shift += g * p.picked;
  w += g * p.picked;
  if constexpr (sizeof(T) == sizeof(Acc<T>)) {
    if (each == kRows) {
      direct<T, kRows, V>(p, x, index, scale, shift, w, y + g * p.pixels, p.groups * p.pixels, last);
      return;
    }
  }
  constexpr i64 wide = V * kLanes<Acc<T>>;
  panel<T, V>(p, x, index, scale, shift, last, room);
  blocks<T, kRows, V>(each, p.picked, room, w, p.groups * p.picked, y + g * p.pixels, p.groups * p.pixels, last,
                      room + p.picked * wide);
}

template <class T>
int nchw_fwd(const Params& p, const T* x, const T* w, const Acc<T>* scale, const Acc<T>* shift, T* y) {
  using A = Acc<T>;
  constexpr i64 L = kLanes<A>;
  const i64 tiles = ceil_div(p.pixels, kTile), items = p.n * tiles * p.groups;
  const int threads = team(p, items);
  constexpr bool same = sizeof(T) == sizeof(A);
  const i64 weights = same ? 0 : padded<A>(p.co * p.picked), room = padded<A>((p.picked + kRows) * kVectors * L);
  A* const memory = static_cast<A*>(scratch(sizeof(A) * static_cast<std::size_t>(weights + threads * room)));
  if (!memory) return out_of_memory;
  for (i64 i = 0; i < p.co * p.picked && !same; ++i) memory[i] = to_acc(w[i]);
  const A* factors = memory;
  if constexpr (same) factors = w;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (i64 item = 0; item < items; ++item) {
    const i64 g = item % p.groups, at = item / p.groups % tiles, n = item / p.groups / tiles;
    const i64 first = at * kTile, end = smaller(p.pixels, first + kTile);
    const T* const image = x + n * p.image;
    T* const out = y + n * p.co * p.pixels;
    A* const own = memory + weights + member() * room;
    i64 left = ceil_div(end - first, L);  // vectors, in parts as equal as can be
    i64 pixel = first;
    for (i64 parts = ceil_div(left, kVectors); parts > 0; --parts) {
      const i64 v = ceil_div(left, parts);
      const int last = static_cast<int>(smaller(L, end - pixel - (v - 1) * L));
      switch (v) {
        case 1:
          tile<T, 1>(p, g, image + pixel, factors, scale, shift, out + pixel, last, own);
          break;
        case 2:
          tile<T, 2>(p, g, image + pixel, factors, scale, shift, out + pixel, last, own);
          break;
#if !defined(__AVX512F__)
        case 3:
          tile<T, 3>(p, g, image + pixel, factors, scale, shift, out + pixel, last, own);
          break;
#endif
      }
      left -= v;
      pixel += v * L;
    }
  }
  return ok;
}

}  // namespace condensed
}  // namespace
