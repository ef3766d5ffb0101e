// NHWC weight gradient microkernel: a block of runs whose sums stay in registers while rows of pixels stream by.
#pragma once
#include "multi_dwconv2d/nhwc_tile.h"

namespace {
namespace nhwc {

#if defined(__AVX512F__)
constexpr int kLongestGather = 7;
constexpr int kMostRuns[kRunKinds] = {2, 3, 4, 4, 4, 8};  // of a block, by kind: what the registers hold
constexpr int columns_at_once(int) { return 4; }
#else
constexpr int kLongestGather = 4;
constexpr int kMostRuns[kRunKinds] = {1, 2, 3, 4, 5, 8};
constexpr int columns_at_once(int sums) { return sums > 10 ? 2 : 4; }
#endif

template <class A>
struct Gather {
  const A* const* lines;  // staged rows by kernel row; zeros where the image ends
  i64 offset, step_h;     // added to every line; lines from one grid row to the next
  const Run* run;         // of the block
  A* sums;                // by slot
  const A* g;             // gradient of the first grid row
  i64 g_row, columns;     // elements from one gradient row to the next; columns of it
  int from, to;           // grid rows
};

template <int RB, int L, int TJ, class A>
LK_INLINE void gather_columns(Vec<A> (*acc)[L], const A* const* x, const A* g, i64 j) {
  constexpr int V = kLanes<A>;
  Vec<A> gv[TJ];
#pragma GCC unroll 8
  for (int t = 0; t < TJ; ++t) gv[t] = vload(g + (j + t) * V);
  // Runs inside columns: sums that follow each other are then different ones, and none waits for the last.
#pragma GCC unroll 16
  for (int q = 0; q < TJ + L - 1; ++q)
#pragma GCC unroll 16
    for (int b = 0; b < RB; ++b) {
      Vec<A> v = vload(x[b] + (j + q) * V);
      if (L > 1 && TJ > 1) LK_KEEP(v);
#pragma GCC unroll 8
      for (int t = 0; t < TJ; ++t)
        if (q - t >= 0 && q - t < L) acc[b][q - t] = vfma(v, gv[t], acc[b][q - t]);
    }
}

template <class A, int RB, int L>
__attribute__((noinline)) void gather(const Gather<A>& a, Ahead& ahead) {
  constexpr int V = kLanes<A>, TJ = columns_at_once(RB * L);
  const i64 n = a.columns;
  Vec<A> acc[RB][L];
#pragma GCC unroll 16
  for (int b = 0; b < RB; ++b)
#pragma GCC unroll 16
    for (int l = 0; l < L; ++l) acc[b][l] = Vec<A>{};
  for (int d = a.from; d < a.to; ++d) {
    const A* g = a.g + d * a.g_row;
    const A* x[RB];
#pragma GCC unroll 16
    for (int b = 0; b < RB; ++b) x[b] = a.lines[a.run[b].row + d * a.step_h] + a.offset + a.run[b].x;
    i64 j = 0;
    const int rate = ahead.turn();
    for (; j + TJ <= n; j += TJ) {
      if (rate) ahead.fetch(rate);
      gather_columns<RB, L, TJ>(acc, x, g, j);
    }
    if constexpr (TJ > 2) {
      if (n & 2) {
        gather_columns<RB, L, 2>(acc, x, g, j);
        j += 2;
      }
    }
    if (n & 1) gather_columns<RB, L, 1>(acc, x, g, j);
  }
#pragma GCC unroll 16
  for (int b = 0; b < RB; ++b)
#pragma GCC unroll 16
    for (int l = 0; l < L; ++l) {
      A* sum = a.sums + a.run[b].w + l * V;
      vstore(sum, vload(sum) + acc[b][l]);
    }
}

template <class A, int KIND, int RB = kMostRuns[KIND]>
void gather_runs(int runs, const Gather<A>& a, Ahead& ahead) {
  if constexpr (RB > 0) {
    if (runs == RB)
      gather<A, RB, kRunLength[KIND]>(a, ahead);
    else
      gather_runs<A, KIND, RB - 1>(runs, a, ahead);
  }
}

template <class A>
void gather_block(int kind, int runs, const Gather<A>& a, Ahead& ahead) {
  switch (kind) {
    case 0:
      if constexpr (kLongestGather == 7) return gather_runs<A, 0>(runs, a, ahead);
      return;
    case 1:
      if constexpr (kLongestGather >= 5) return gather_runs<A, 1>(runs, a, ahead);
      return;
    case 2:
      return gather_runs<A, 2>(runs, a, ahead);
    case 3:
      return gather_runs<A, 3>(runs, a, ahead);
    case 4:
      return gather_runs<A, 4>(runs, a, ahead);
    default:
      return gather_runs<A, 5>(runs, a, ahead);
  }
}

}  // namespace nhwc
}  // namespace
