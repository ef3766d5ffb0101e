// Microkernel of the weight gradient with pixels in the vector.
#pragma once
#include "rsdc2d/stage.h"

namespace {
namespace rsdc {

#if defined(__AVX512F__)
constexpr int kWeights[5] = {0, 9, 9, 0, 6};
#else
constexpr int kWeights[5] = {0, 9, 5, 0, 2};
#endif

// One weight of a filter: where its inputs lie relative to the gradients, and its place in the filter.
struct Weight {
  i64 at, slot;
};

template <class A, int L>
LK_INLINE A sum_lanes(const A* v) {
  A s[L];
  __builtin_memcpy(s, v, sizeof s);
#pragma GCC unroll 4
  for (int half = L / 2; half; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) s[i] += s[i + half];
  return s[0];
}
template <class A>
LK_INLINE A sum_lanes(Vec<A> v) {
  return sum_lanes<A, kLanes<A>>(reinterpret_cast<const A*>(&v));
}

template <class A>
struct RunSum {
  i64 vectors, pitch, step;  // pitch: from one output's gradients to the next's; step: from its sums to the next's
  i64 lanes;                 // of a sum
};

// M weights of each of R outputs that share their taps. Every weight has a vector of sums.
template <class A, int R, int M>
void run_sum(const RunSum<A>& a, const Weight* weight, const A* x, const A* g, A* sums) {
  using S = __typeof__(run_vector<A, R>());
  constexpr int L = static_cast<int>(sizeof(S) / sizeof(A));
  S acc[R][M];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) acc[r][m] = S{};
  for (i64 i = a.vectors * (kLanes<A> / L); i > 0; --i, g += L, x += L) {
    S k[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      __builtin_memcpy(&k[r], g + r * a.pitch, sizeof(S));
      LK_KEEP(k[r]);
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      S v;
      __builtin_memcpy(&v, x + weight[m].at, sizeof v);
      if (R > 1) LK_KEEP(v);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) acc[r][m] = vfma(v, k[r], acc[r][m]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      A* const to = sums + (r * a.step + weight[m].slot) * a.lanes;
      S sum;
      __builtin_memcpy(&sum, to, sizeof sum);
      sum += acc[r][m];
      __builtin_memcpy(to, &sum, sizeof sum);
    }
}

// n weights of each of `outputs` (1, 2 or 4) filters.
template <class A>
void run_sums(const RunSum<A>& a, i64 outputs, const Weight* weight, i64 n, const A* x, const A* g, A* sums) {
  using Fn = void (*)(const RunSum<A>&, const Weight*, const A*, const A*, A*);
#define LK_T(r, n) run_sum<A, r, n>
  static constexpr Fn one[] = {nullptr,    LK_T(1, 1), LK_T(1, 2), LK_T(1, 3), LK_T(1, 4),
                               LK_T(1, 5), LK_T(1, 6), LK_T(1, 7), LK_T(1, 8), LK_T(1, 9)};
#if defined(__AVX512F__)
  static constexpr Fn two[] = {nullptr,    LK_T(2, 1), LK_T(2, 2), LK_T(2, 3), LK_T(2, 4),
                               LK_T(2, 5), LK_T(2, 6), LK_T(2, 7), LK_T(2, 8), LK_T(2, 9)};
  static constexpr Fn four[] = {nullptr, LK_T(4, 1), LK_T(4, 2), LK_T(4, 3), LK_T(4, 4), LK_T(4, 5), LK_T(4, 6)};
#else
  static constexpr Fn two[] = {nullptr, LK_T(2, 1), LK_T(2, 2), LK_T(2, 3), LK_T(2, 4), LK_T(2, 5)};
  static constexpr Fn four[] = {nullptr, LK_T(4, 1), LK_T(4, 2)};
#endif
#undef LK_T
  for (i64 pieces = ceil_div(n, kWeights[outputs]); pieces > 0; --pieces) {
    const i64 m = ceil_div(n, pieces);
    (outputs == 1 ? one : outputs == 2 ? two : four)[m](a, weight, x, g, sums);
    weight += m;
    n -= m;
  }
}

}  // namespace rsdc
}  // namespace
