// Microkernels of the weight gradient: vectors of input channels times single output gradients, summed over pixels.
#pragma once
#include "rsdc2d/dense_tile.h"

namespace {
namespace rsdc {

template <class A>
struct GradTile {
  i64 images, rows, columns, in_image, out_image, in_row, out_row;
  i64 step;  // from one output's totals to the next's; with add_taps, from one pixel's gradient to the next's
};

// M outputs times N vectors of inputs at one tap. Outputs of a pixel follow each other.
template <class A, int M, int N, bool Pairs>
void grad_tile(const GradTile<A>& a, const A* in, const A* out, A* total) {
  constexpr int V = kLanes<A>;
  Vec<A> acc[M][N];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < N; ++v) acc[m][v] = Vec<A>{};
  for (i64 n = 0; n < a.images; ++n)
    for (i64 i = 0; i < a.rows; ++i) {
      const A *x = in + n * a.in_image + i * a.in_row, *g = out + n * a.out_image + i * a.out_row;
      for (i64 j = a.columns; j > 0; --j, x += N * V, g += M) {
        Vec<A> k[N];
#pragma GCC unroll 2
        for (int v = 0; v < N; ++v) {
          k[v] = vload(x + v * V);
          LK_KEEP(k[v]);
        }
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
          const Vec<A> b = every(g[m]);
#pragma GCC unroll 2
          for (int v = 0; v < N; ++v) acc[m][v] = multiply_add<Pairs>(b, k[v], acc[m][v]);
        }
      }
    }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m, total += a.step)
#pragma GCC unroll 2
    for (int v = 0; v < N; ++v) vstore(total + v * V, vload(total + v * V) + acc[m][v]);
}

template <class A>
using GradFn = void (*)(const GradTile<A>&, const A*, const A*, A*);

template <class A, int N, bool Pairs>
GradFn<A> grad_fn_of(i64 outputs) {
#define LK_T(n) grad_tile<A, n, N, Pairs>
#if defined(__AVX512F__)
  static constexpr GradFn<A> fn[] = {nullptr, LK_T(1), LK_T(2),  LK_T(3),  LK_T(4),  LK_T(5),  LK_T(6), LK_T(7),
                                     LK_T(8), LK_T(9), LK_T(10), LK_T(11), LK_T(12), LK_T(13), LK_T(14)};
#else
  static constexpr GradFn<A> fn[] = {nullptr, LK_T(1), LK_T(2), LK_T(3), LK_T(4), LK_T(5), LK_T(6)};
#endif
#undef LK_T
  return fn[outputs];
}
template <class A, bool Pairs>
GradFn<A> grad_fn(i64 outputs, i64 wide) {
  if constexpr (!Pairs)
    if (wide == kLanes<A>) return grad_fn_of<A, 1, false>(outputs);
  return grad_fn_of<A, kVectors, Pairs>(outputs);
}

// M taps of one output times N vectors of inputs: every tap loads inputs of its own.
template <class A, int M, int N>
void tap_tile(const GradTile<A>& a, const Term* t, const A* in, const A* out, A* total) {
  constexpr int V = kLanes<A>;
  Vec<A> acc[M][N];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < N; ++v) acc[m][v] = Vec<A>{};
  for (i64 n = 0; n < a.images; ++n)
    for (i64 i = 0; i < a.rows; ++i) {
      const A *x = in + n * a.in_image + i * a.in_row, *g = out + n * a.out_image + i * a.out_row;
      for (i64 j = a.columns; j > 0; --j, x += N * V, g += a.step) {
        const Vec<A> b = every(*g);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
          for (int v = 0; v < N; ++v) acc[m][v] = vfma(b, vload(x + t[m].at + v * V), acc[m][v]);
      }
    }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    A* const to = total + t[m].slot * (N * V);
#pragma GCC unroll 2
    for (int v = 0; v < N; ++v) vstore(to + v * V, vload(to + v * V) + acc[m][v]);
  }
}

#if defined(__AVX512F__)
constexpr i64 kTaps = 9;
#else
constexpr i64 kTaps = 5;
#endif

template <class A, int N>
void add_taps_of(const GradTile<A>& a, const Term* t, i64 n, const A* in, const A* out, A* total) {
  using Fn = void (*)(const GradTile<A>&, const Term*, const A*, const A*, A*);
#define LK_T(n) tap_tile<A, n, N>
#if defined(__AVX512F__)
  static constexpr Fn fn[] = {nullptr, LK_T(1), LK_T(2), LK_T(3), LK_T(4), LK_T(5), LK_T(6), LK_T(7), LK_T(8), LK_T(9)};
#else
  static constexpr Fn fn[] = {nullptr, LK_T(1), LK_T(2), LK_T(3), LK_T(4), LK_T(5)};
#endif
#undef LK_T
  for (i64 pieces = ceil_div(n, kTaps); pieces > 0; --pieces) {
    const i64 m = ceil_div(n, pieces);
    fn[m](a, t, in, out, total);
    t += m;
    n -= m;
  }
}

// All taps of one output; `out` is its gradient at the first pixel.
template <class A>
void add_taps(const GradTile<A>& a, const Term* t, i64 n, i64 wide, const A* in, const A* out, A* total) {
  if (wide == kLanes<A>)
    add_taps_of<A, 1>(a, t, n, in, out, total);
  else
    add_taps_of<A, kVectors>(a, t, n, in, out, total);
}

}  // namespace rsdc
}  // namespace
