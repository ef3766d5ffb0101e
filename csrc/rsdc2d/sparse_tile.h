// Microkernel with pixels in the vector: a few outputs times a run of pixels stay in registers.
#pragma once
#include "rsdc2d/stage.h"

namespace {
namespace rsdc {

#if defined(__AVX512F__)
constexpr int kRun[5] = {0, 8, 8, 0, 6};
#else
constexpr int kRun[5] = {0, 8, 4, 0, 3};
#endif

template <class A>
struct SparseTile {
  i64 sources, channel, slots;  // slots: weights of one source, elements
  Walk walk;
  const A *weights, *init;
  i64 pitch;           // from one output to the next
  i64 step, out_step;  // with Rows, from one vector to the next, of inputs and of outputs; else they follow each other
};

// R outputs that share their taps times P vectors of pixels. One output alone loads as much as it multiplies.
template <class A, int R, int P, bool Rows = false>
void sparse_tile(const SparseTile<A>& a, const A* x, A* out) {
  using S = __typeof__(run_vector<A, R>());
  constexpr int L = static_cast<int>(sizeof(S) / sizeof(A)), K = kLanes<A> / L, N = P * K;
  S acc[R][N];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int p = 0; p < N; ++p) acc[r][p] = a.init[r] - S{};
  const Term* term = a.walk.term;
  const i64* count = a.walk.count;
  const A* w = a.weights;
  const i64 out_step = Rows ? a.out_step : kLanes<A>;
  for (i64 s = a.sources; s > 0; --s) {
    const Term* const end = term + *count;
    for (const Term* t = term; t != end; ++t) {
      const A *xt = x + t->at, *wt = w + t->slot * R;
      S v[N];
#pragma GCC unroll 16
      for (int p = 0; p < N; ++p) {
        __builtin_memcpy(&v[p], xt + (Rows ? p % K : p) * L, sizeof(S));
        if (R > 1) LK_KEEP(v[p]);
        if (Rows && p % K == K - 1) xt += a.step;
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const S k = wt[r] - S{};
#pragma GCC unroll 16
        for (int p = 0; p < N; ++p) acc[r][p] = vfma(v[p], k, acc[r][p]);
      }
    }
    x += a.channel;
    w += a.slots;
    term += a.walk.next_term;
    count += a.walk.next_count;
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r, out += a.pitch)
#pragma GCC unroll 16
    for (int p = 0; p < N; ++p) __builtin_memcpy(out + p / K * out_step + p % K * L, &acc[r][p], sizeof(S));
}

template <class A>
using SparseFn = void (*)(const SparseTile<A>&, const A*, A*);

template <class A>
SparseFn<A> sparse_fn(i64 outputs, i64 vectors) {
#define LK_T(n) sparse_tile<A, 1, n>
  static constexpr SparseFn<A> one[] = {nullptr, LK_T(1), LK_T(2), LK_T(3), LK_T(4),
                                        LK_T(5), LK_T(6), LK_T(7), LK_T(8)};
#undef LK_T
#define LK_T(n) sparse_tile<A, 2, n>
  static constexpr SparseFn<A> two[] = {nullptr, LK_T(1), LK_T(2), LK_T(3), LK_T(4),
                                        LK_T(5), LK_T(6), LK_T(7), LK_T(8)};
#undef LK_T
#define LK_T(n) sparse_tile<A, 4, n>
  static constexpr SparseFn<A> four[] = {nullptr, LK_T(1), LK_T(2), LK_T(3), LK_T(4), LK_T(5), LK_T(6)};
#undef LK_T
  return outputs == 1 ? one[vectors] : outputs == 2 ? two[vectors] : four[vectors];
}

// Rows of one vector each, for 1 or 4 outputs: narrower vectors lose more in their addresses than gaps cost.
template <class A>
constexpr bool kByRows = kVecBytes == 64 && sizeof(A) == 4;
template <class A>
SparseFn<A> sparse_rows_fn(i64 outputs, i64 vectors) {
#define LK_T(n) sparse_tile<A, 1, n, true>
  static constexpr SparseFn<A> one[] = {nullptr, LK_T(1), LK_T(2), LK_T(3), LK_T(4),
                                        LK_T(5), LK_T(6), LK_T(7), LK_T(8)};
#undef LK_T
#define LK_T(n) sparse_tile<A, 4, n, true>
  static constexpr SparseFn<A> four[] = {nullptr, LK_T(1), LK_T(2), LK_T(3), LK_T(4), LK_T(5), LK_T(6)};
#undef LK_T
  return outputs == 1 ? one[vectors] : four[vectors];
}

}  // namespace rsdc
}  // namespace
