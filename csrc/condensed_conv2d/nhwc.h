// NHWC: output channels in the vector. Consecutive outputs belong to consecutive groups, so a vector of them multiplies
// the groups' values of one k, over and over: a pattern of as many values as there are groups, loaded with a broadcast.
#pragma once
#include "condensed_conv2d/kernel_cpu.h"

namespace {
namespace condensed {

#if defined(__AVX512F__)
constexpr int kColumns = 4;
#else
constexpr int kColumns = 2;
#endif
constexpr int kPixels = 6;

// P values of p, repeated through a vector. P divides its length.
template <class A, int P>
LK_INLINE Vec<A> pattern(const A* p) {
  constexpr int bytes = P * static_cast<int>(sizeof(A));
  if constexpr (P == 1) {
    return splat<A>(*p);
  } else if constexpr (bytes == kVecBytes) {
    return vload(p);
  } else if constexpr (bytes == 8) {
    double two;
    __builtin_memcpy(&two, p, 8);
    return (Vec<A>)splat<double>(two);
  }
#if defined(__AVX512F__)
  else if constexpr (bytes == 16) {
    return (Vec<A>)_mm512_broadcast_f32x4(_mm_loadu_ps(reinterpret_cast<const float*>(p)));
  } else {
    return (Vec<A>)_mm512_broadcast_f32x8(_mm256_loadu_ps(reinterpret_cast<const float*>(p)));
  }
#elif defined(__AVX2__)
  else {
    return (Vec<A>)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
  }
#endif
}

template <class A, int P>
constexpr bool kHasPattern = kLanes<A> % P == 0;

// kPixels pixels, of which `count` are stored, times V vectors of outputs, of which `left` outputs are. Values
// [pixel][K][P], weights [K][V]. Aligned: where its loop lies is a tenth of its time.
template <class A, int P, int V>
__attribute__((aligned(64))) void cells(i64 picked, const A* a, i64 row, const A* w, A* out, i64 step, i64 count,
                                        i64 left) {
  constexpr int L = kLanes<A>;
  Vec<A> sum[kPixels][V] = {};
  for (i64 k = 0; k < picked; ++k, a += P, w += V * L) {
    Vec<A> b[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      b[v] = vload(w + v * L);
      LK_KEEP(b[v]);
    }
#pragma GCC unroll 8
    for (int m = 0; m < kPixels; ++m) {
      const Vec<A> value = pattern<A, P>(a + m * row);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[m][v] = vfma(value, b[v], sum[m][v]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kPixels; ++m, out += step) {
    if (m >= count) return;
#pragma GCC unroll 4
    for (int v = 0; v + 1 < V; ++v) vstore(out + v * L, sum[m][v]);
    const i64 some = left - (V - 1) * L;
    if (some >= L)
      vstore(out + (V - 1) * L, sum[m][V - 1]);
    else
      vstore(out + (V - 1) * L, sum[m][V - 1], static_cast<int>(some));
  }
}

// `wide` vectors of outputs.
template <class A, int P>
void columns(i64 wide, i64 picked, const A* a, i64 row, const A* w, A* out, i64 step, i64 count, i64 left) {
  switch (wide) {
    case 1:
      return cells<A, P, 1>(picked, a, row, w, out, step, count, left);
    case 2:
      return cells<A, P, 2>(picked, a, row, w, out, step, count, left);
#if defined(__AVX512F__)
    case 3:
      return cells<A, P, 3>(picked, a, row, w, out, step, count, left);
    case 4:
      return cells<A, P, 4>(picked, a, row, w, out, step, count, left);
#endif
  }
}
template <class A>
using Columns = void (*)(i64, i64, const A*, i64, const A*, A*, i64, i64, i64);

// For so many groups; null if a vector holds no whole number of them.
template <class A>
Columns<A> columns_of(i64 groups) {
#define LK_P(g)                                            \
  case g:                                                  \
    if constexpr (kHasPattern<A, g>) return columns<A, g>; \
    break
  switch (groups) {
    LK_P(1);
    LK_P(2);
    LK_P(4);
    LK_P(8);
    LK_P(16);
  }
#undef LK_P
  return nullptr;
}

// Weights [blocks of kColumns vectors][K][vectors of the block][lanes], zero past the outputs.
template <class T>
void pack_columns(const Params& p, const T* w, Acc<T>* to) {
  constexpr i64 L = kLanes<Acc<T>>;
  for (i64 first = 0; first < p.co; first += kColumns * L) {
    const i64 wide = smaller(kColumns, ceil_div(p.co - first, L)) * L;
    for (i64 k = 0; k < p.picked; ++k)
      for (i64 i = 0; i < wide; ++i) *to++ = first + i < p.co ? to_acc(w[(first + i) * p.picked + k]) : Acc<T>(0);
  }
}

template <class T>
int nhwc_as(const Params& p, Columns<Acc<T>> columns, const T* x, const T* w, const Acc<T>* scale, const Acc<T>* shift,
            T* y) {
  using A = Acc<T>;
  constexpr i64 L = kLanes<A>;
  const i64 all = p.n * p.pixels, items = ceil_div(all, kPixels), entries = p.groups * p.picked;
  const int threads = team(p, items);
  const i64 row = padded<A>(entries), weights = padded<A>(ceil_div(p.co, L) * L * p.picked),
            made = sizeof(T) == sizeof(A) ? 0 : kPixels * kColumns * L,  // outputs before they are rounded
      room = kPixels * row + made;
  const i64 total = weights + 2 * row + threads * room;
  A* const memory = static_cast<A*>(
      scratch(sizeof(A) * static_cast<std::size_t>(total) + sizeof(i64) * static_cast<std::size_t>(entries)));
  if (!memory) return out_of_memory;
  pack_columns<T>(p, w, memory);
  A *const s = memory + weights, *const b = s + row;
  i64* const index = reinterpret_cast<i64*>(memory + total);
  for (i64 g = 0; g < p.groups; ++g)
    for (i64 k = 0; k < p.picked; ++k) {
      const i64 from = g * p.picked + k, to = k * p.groups + g;
      s[to] = scale[from];
      b[to] = shift[from];
      index[to] = p.index[from];
    }
  for (i64 i = entries; i < row; ++i) s[i] = b[i] = A(0);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (i64 item = 0; item < items; ++item) {
    // As equal as can be: 8 pixels are 4 + 4, not 6 + 2.
    const i64 first = item * all / items, count = (item + 1) * all / items - first;
    A* const own = memory + weights + 2 * row + member() * room;
    const T* from[kPixels];
    for (i64 m = 0; m < kPixels; ++m) {
      const i64 at = first + smaller(m, count - 1);
      from[m] = x + at / p.pixels * p.image + at % p.pixels * p.pixel;
    }
    for (i64 i = 0; i < entries; ++i) {
      const i64 c = index[i];
#pragma GCC unroll 8
      for (int m = 0; m < kPixels; ++m) own[m * row + i] = to_acc(from[m][c]);
    }
    for (i64 m = 0; m < kPixels; ++m) {
      A* const to = own + m * row;
      for (i64 i = entries; i < row; ++i) to[i] = A(0);
      for (i64 i = 0; i < row; i += L)
        vstore(to + i, activate<A>(vfma(vload(to + i), vload(s + i), vload(b + i)), p.act));
    }
    const A* block = memory;
    for (i64 o = 0; o < p.co; o += kColumns * L) {
      const i64 left = p.co - o, wide = smaller(kColumns, ceil_div(left, L));
      T* const out = y + first * p.co + o;
      if constexpr (sizeof(T) == sizeof(A)) {
        columns(wide, p.picked, own, row, block, out, p.co, count, left);
      } else {
        A* const rounded = own + kPixels * row;
        columns(wide, p.picked, own, row, block, rounded, kColumns * L, count, kColumns * L);
        for (i64 m = 0; m < count; ++m)
          store_row<T>(rounded + m * kColumns * L, smaller(left, wide * L), out + m * p.co);
      }
      block += wide * L * p.picked;
    }
  }
  return ok;
}

// Any number of groups: one output after another, from the activated values of a pixel.
template <class T>
int nhwc_plain(const Params& p, const T* x, const T* w, const Acc<T>* scale, const Acc<T>* shift, T* y) {
  using A = Acc<T>;
  const i64 all = p.n * p.pixels, entries = p.groups * p.picked, room = padded<A>(entries);
  const int threads = team(p, all);
  A* const memory = static_cast<A*>(scratch(sizeof(A) * static_cast<std::size_t>(threads * room)));
  if (!memory) return out_of_memory;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (i64 at = 0; at < all; ++at) {
    const T* const from = x + at / p.pixels * p.image + at % p.pixels * p.pixel;
    A* const own = memory + member() * room;
    for (i64 i = 0; i < entries; ++i) {
      const A z = to_acc(from[p.index[i]]) * scale[i] + shift[i];
      own[i] = activate<A>(splat<A>(z), p.act)[0];
    }
    for (i64 o = 0; o < p.co; ++o) {
      const A* const a = own + o % p.groups * p.picked;
      A sum = 0;
      for (i64 k = 0; k < p.picked; ++k) sum += to_acc(w[o * p.picked + k]) * a[k];
      y[at * p.co + o] = from_acc<T>(sum);
    }
  }
  return ok;
}

template <class T>
int nhwc_fwd(const Params& p, const T* x, const T* w, const Acc<T>* scale, const Acc<T>* shift, T* y) {
  using A = Acc<T>;
  if (const Columns<A> columns = columns_of<A>(p.groups)) return nhwc_as<T>(p, columns, x, w, scale, shift, y);
  return nhwc_plain<T>(p, x, w, scale, shift, y);
}

}  // namespace condensed
}  // namespace
