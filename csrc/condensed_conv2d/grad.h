// The weight gradient, NCHW: products of activated maps and gradients, summed by one thread for each weight in an order
// that depends on neither threads nor addresses.
#pragma once
#include "condensed_conv2d/nchw.h"

namespace {
namespace condensed {

constexpr int kOutputs = 4;
#if defined(__AVX512F__)
constexpr int kInputs = 4;
#else
constexpr int kInputs = 2;
#endif
constexpr i64 kChunk = 128;  // pixels staged at once

// `count` pixels of a map, activated if scale is there, zeros up to `wide`.
template <class T>
void stage(const T* from, const Acc<T>* scale, const Acc<T>* shift, Act act, i64 count, i64 wide, Acc<T>* to) {
  using A = Acc<T>;
  constexpr i64 L = kLanes<A>;
  const Vec<A> s = splat<A>(scale ? *scale : A(1)), b = splat<A>(shift ? *shift : A(0));
  for (i64 i = 0; i < wide; i += L) {
    const i64 some = count - i;
    Vec<A> v = some >= L ? vload(from + i) : vload(from + i, static_cast<int>(some));
    if (scale) v = activate<A>(vfma(v, s, b), act);
    vstore(to + i, v);
    for (i64 j = some > 0 ? some : 0; j < L; ++j) to[i + j] = A(0);
  }
}

// sums[kOutputs][kInputs] of vectors += g[kOutputs][wide] times a[kInputs][wide].
template <class A>
void products(const A* g, const A* a, i64 wide, A* sums, i64 step) {
  constexpr i64 L = kLanes<A>;
  Vec<A> sum[kOutputs][kInputs];
#pragma GCC unroll 4
  for (int o = 0; o < kOutputs; ++o)
#pragma GCC unroll 4
    for (int i = 0; i < kInputs; ++i) sum[o][i] = vload(sums + o * step + i * L);
  for (i64 at = 0; at < wide; at += L) {
    Vec<A> in[kInputs];
#pragma GCC unroll 4
    for (int i = 0; i < kInputs; ++i) in[i] = vload(a + i * wide + at);
#pragma GCC unroll 4
    for (int o = 0; o < kOutputs; ++o) {
      const Vec<A> out = vload(g + o * wide + at);
#pragma GCC unroll 4
      for (int i = 0; i < kInputs; ++i) sum[o][i] = vfma(out, in[i], sum[o][i]);
    }
  }
#pragma GCC unroll 4
  for (int o = 0; o < kOutputs; ++o)
#pragma GCC unroll 4
    for (int i = 0; i < kInputs; ++i) vstore(sums + o * step + i * L, sum[o][i]);
}

template <class T>
int nchw_bwd_w(const Params& p, const T* g, const T* x, const Acc<T>* scale, const Acc<T>* shift, T* gw) {
  using A = Acc<T>;
  constexpr i64 L = kLanes<A>;
  const i64 each = p.co / p.groups, blocks = ceil_div(each, kOutputs), items = p.groups * blocks;
  const i64 inputs = ceil_div(p.picked, kInputs) * kInputs, step = inputs * L;
  const i64 room = padded<A>(kOutputs * step + (kOutputs + inputs) * kChunk);
  const int threads = team(p, items);
  A* const memory = static_cast<A*>(scratch(sizeof(A) * static_cast<std::size_t>(threads * room)));
  if (!memory) return out_of_memory;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (i64 item = 0; item < items; ++item) {
    const i64 group = item / blocks, j = item % blocks * kOutputs;
    const i64 rows = smaller(kOutputs, each - j);
    A *const sums = memory + member() * room, *const out = sums + kOutputs * step, *const in = out + kOutputs * kChunk;
    for (i64 i = 0; i < room; ++i) sums[i] = A(0);
    for (i64 n = 0; n < p.n; ++n)
      for (i64 first = 0; first < p.pixels; first += kChunk) {
        const i64 count = smaller(kChunk, p.pixels - first), wide = ceil_div(count, L) * L;
        for (i64 r = 0; r < kOutputs; ++r) {
          const i64 o = (j + (r < rows ? r : 0)) * p.groups + group;
          stage<T>(g + (n * p.co + o) * p.pixels + first, nullptr, nullptr, p.act, count, wide, out + r * wide);
        }
        for (i64 k = 0; k < inputs; ++k) {
          const i64 at = group * p.picked + (k < p.picked ? k : 0);
          const T* const from = x + n * p.image + p.index[at] * p.channel + first;
          stage<T>(from, scale + at, shift + at, p.act, count, wide, in + k * wide);
        }
        for (i64 k = 0; k < inputs; k += kInputs) products<A>(out, in + k * wide, wide, sums + k * L, step);
      }
    for (i64 r = 0; r < rows; ++r)
      for (i64 k = 0; k < p.picked; ++k) {
        A sum = 0;
        for (i64 i = 0; i < L; ++i) sum += sums[r * step + k * L + i];
        gw[((j + r) * p.groups + group) * p.picked + k] = from_acc<T>(sum);
      }
  }
  return ok;
}

}  // namespace condensed
}  // namespace
