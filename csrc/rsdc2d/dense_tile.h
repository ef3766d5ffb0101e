// Microkernel with output channels in the vector: a row of pixels times a few vectors of channels stay in registers.
#pragma once
#include "rsdc2d/stage.h"

namespace {
namespace rsdc {

#if defined(__AVX512F__)
constexpr int kPixels = 14, kVectors = 2;
#else
constexpr int kPixels = 6, kVectors = 2;
#endif

template <class A>
struct DenseTile {
  i64 sources, channel, slots;  // slots: weights of one source, elements
  Walk walk;
  const A *weights, *init;
  i64 step;           // from one pixel's outputs to the next's
  bool past = false;  // the caches
  // Elements of the line in front of the tile's first pixel, or the row's, and behind its last.
  int before = 0, after = 0;

  // How many pixels a shifted tile has outside of the line: negative in front of it.
  int bare(int across) const {
    const int front = before + across, back = after - across;
    return front < 0 ? (back < 0 ? 0 : front < -2 ? -2 : front) : back < 0 ? (back < -2 ? 2 : -back) : 0;
  }
};

// Pixels [First, Last) of a tile times a source's weights at one tap.
template <bool Pairs, int First, int Last, class V, class A, int M, int N>
LK_INLINE void add_tap(V (&acc)[M][N], const V (&k)[N], const A* x) {
#pragma GCC unroll 16
  for (int m = First; m < Last; ++m) {
    const V b = every(x[m]);
#pragma GCC unroll 2
    for (int v = 0; v < N; ++v) acc[m][v] = multiply_add<Pairs>(b, k[v], acc[m][v]);
  }
}

// Edge: whether a tap may reach over an end of the line, where it leaves out up to two pixels.
template <class A, int M, int N, bool Pairs, bool Edge = false>
void dense_tile(const DenseTile<A>& a, const A* x, A* out) {
  constexpr int V = kLanes<A>;
  Vec<A> acc[M][N];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < N; ++v) acc[m][v] = vload(a.init + v * V);
  const Term* term = a.walk.term;
  const i64* count = a.walk.count;
  const A* w = a.weights;
  for (i64 s = a.sources; s > 0; --s) {
    const Term* const end = term + *count;
    for (const Term* t = term; t != end; ++t) {
      const A *xt = x + t->at, *wt = w + t->slot * (N * V);
      Vec<A> k[N];
#pragma GCC unroll 2
      for (int v = 0; v < N; ++v) {
        k[v] = vload(wt + v * V);
        LK_KEEP(k[v]);
      }
      if constexpr (Edge) {
        const int bare = a.bare(t->across);
        add_tap<Pairs, 2, M - 2>(acc, k, xt);
        if (bare > -2) {
          add_tap<Pairs, 1, 2>(acc, k, xt);
          if (bare > -1) add_tap<Pairs, 0, 1>(acc, k, xt);
        }
        if (bare < 2) {
          add_tap<Pairs, M - 2, M - 1>(acc, k, xt);
          if (bare < 1) add_tap<Pairs, M - 1, M>(acc, k, xt);
        }
      } else {
        add_tap<Pairs, 0, M>(acc, k, xt);
      }
    }
    x += a.channel;
    w += a.slots;
    term += a.walk.next_term;
    count += a.walk.next_count;
  }
  if (a.past) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m, out += a.step)
#pragma GCC unroll 2
      for (int v = 0; v < N; ++v) vstream(out + v * V, acc[m][v]);
    return;
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m, out += a.step)
#pragma GCC unroll 2
    for (int v = 0; v < N; ++v) vstore(out + v * V, acc[m][v]);
}

template <class A>
using DenseFn = void (*)(const DenseTile<A>&, const A*, A*);

template <class A, int N, bool Pairs>
DenseFn<A> dense_fn(i64 pixels) {
#define LK_T(n) dense_tile<A, n, N, Pairs>
#if defined(__AVX512F__)
  static constexpr DenseFn<A> fn[] = {nullptr, LK_T(1), LK_T(2),  LK_T(3),  LK_T(4),  LK_T(5),  LK_T(6), LK_T(7),
                                      LK_T(8), LK_T(9), LK_T(10), LK_T(11), LK_T(12), LK_T(13), LK_T(14)};
#else
  static constexpr DenseFn<A> fn[] = {nullptr, LK_T(1), LK_T(2), LK_T(3), LK_T(4), LK_T(5), LK_T(6)};
#endif
#undef LK_T
  return fn[pixels];
}

// n pixels in tiles as equal as can be: 32 are 11 + 11 + 10, not 14 + 14 + 4. Where `edges` are those of the line,
// whole tiles leave out what lies over them; small tiles would lose more by asking.
template <class A, int N, bool Pairs>
void dense_row(const DenseTile<A>& row, const A* x, A* out, i64 n, [[maybe_unused]] bool edges) {
#if defined(__AVX512F__)
  DenseTile<A> a = row;
#else
  const DenseTile<A>& a = row;
#endif
  for (i64 tiles = ceil_div(n, kPixels); tiles > 0; --tiles) {
    const i64 m = ceil_div(n, tiles);
    n -= m;
#if defined(__AVX512F__)
    if constexpr (N == kVectors && !Pairs && sizeof(A) == 4) {
      a.after = row.after + static_cast<int>(n);
      if (edges && m == kPixels)
        dense_tile<A, kPixels, N, Pairs, true>(a, x, out);
      else
        dense_fn<A, N, Pairs>(m)(a, x, out);
      a.before += static_cast<int>(m);
    } else
#endif
      dense_fn<A, N, Pairs>(m)(a, x, out);
    x += m;
    out += m * a.step;
  }
}

}  // namespace rsdc
}  // namespace
