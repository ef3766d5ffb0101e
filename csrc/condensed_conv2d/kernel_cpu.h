// What both layouts share: sizes of tiles, the activation, memory.
#pragma once
#include "condensed_conv2d/params.h"
#include "lk/entry.h"
#include "lk/sizes.h"
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace {
namespace condensed {

using namespace lk;
using namespace lk::condensed_conv2d;

constexpr i64 kGrain = 32768;  // multiply-adds below which no team of threads is opened

inline int team(const Params& p, i64 items) {
  if (p.threads <= 1 || items <= 1 || p.n * p.pixels * p.co * p.picked <= kGrain) return 1;
  return static_cast<int>(smaller(p.threads, items));
}

inline int member() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

template <class A>
LK_INLINE Vec<A> activate(Vec<A> z, Act act) {
  // Written so that a NaN stays one.
  const Vec<A> zero = {};
  if (act == Act::relu) return z < zero ? zero : z;
  const Vec<A> three = splat<A>(3), six = splat<A>(6);
  Vec<A> t = z + three;
  t = t < zero ? zero : t;
  t = t > six ? six : t;
  return z * t / six;
}

// `count` sums, rounded to what is stored.
template <class T>
void store_row(const Acc<T>* from, i64 count, T* to) {
  constexpr i64 L = kLanes<Acc<T>>;
  i64 i = 0;
  for (; i + L <= count; i += L) vstore(to + i, vload(from + i));
  if (i < count) vstore(to + i, vload(from + i), static_cast<int>(count - i));
}

// Rounded to whole cache lines, so that threads do not share one.
template <class A>
i64 padded(i64 count) {
  constexpr i64 line = 64 / static_cast<i64>(sizeof(A));
  return ceil_div(count, line) * line;
}

}  // namespace condensed
}  // namespace
