// Products of packed weights and panels of pixels, with a few channels times a few vectors of pixels in registers.
#pragma once
#include "mldn_block/vectors.h"

namespace {
namespace mldn {

// A panel holds sub-panels of kSub pixels; a sub-panel holds its rows one after another.

// Constants of one channel's norm: (v - mean) * scale + beta is what ReLU sees, (v - mean) * inv the normalised value.
// The mean is subtracted first: where it is far above the deviation, v * scale + shift would round twice as badly.
template <class A>
struct Norm {
  A *scale, *beta, *mean, *inv;
  void take(Arena& a, i64 n) {
    scale = a.take<A>(n);
    beta = a.take<A>(n);
    mean = a.take<A>(n);
    inv = a.take<A>(n);
  }
  Norm from(i64 i) const { return {scale + i, beta + i, mean + i, inv + i}; }
  void set(i64 i, double gamma, double b, double m, double variance, double eps) const {
    const double r = 1 / __builtin_sqrt(variance + eps);
    mean[i] = static_cast<A>(m);
    inv[i] = static_cast<A>(r);
    scale[i] = static_cast<A>(gamma * r);
    beta[i] = static_cast<A>(b);
  }
};

// What dropout does to the inputs of one layer; row: the number of its first channel.
struct Dropped {
  Drop drop;
  double factor;
  i64 row;
};

template <bool Drops, class A>
LK_INLINE Vec<A> active(Vec<A> v, A mean, A scale, A beta, A factor, i64 pixel, std::uint32_t key,
                        std::uint32_t threshold) {
  Vec<A> a = relu(vfma(v - every(mean), every(scale), every(beta)));
  if constexpr (Drops) a = kept<A>(a * every(factor), pixel, key, threshold);
  return a;
}

// Activated inputs of `n` pixels that begin at `image` (channel 0) and are number `pixel` of the batch.
// `index`: which channels, or null for all in order.
template <class T, bool Drops>
void pack_active(const T* image, i64 plane, const i64* index, i64 channels, i64 n, const Norm<Acc<T>>& norm,
                 const Dropped& d, i64 pixel, Acc<T>* to) {
  using A = Acc<T>;
  constexpr i64 V = kLanes<A>, S = kSub<A>;
  const A factor = static_cast<A>(d.factor);
  for (i64 c = 0; c < channels; ++c, to += S) {
    const T* const from = image + (index ? index[c] : c) * plane;
    const A mean = norm.mean[c], scale = norm.scale[c], beta = norm.beta[c];
    const std::uint32_t key = Drops ? d.drop.key(d.row + c) : 0, least = d.drop.threshold;
    A* row = to;
    i64 i = 0;
    for (; i + S <= n; i += S, row += channels * S)
#pragma GCC unroll 4
      for (int v = 0; v < kRun<A>; ++v)
        vstore(row + v * V,
               active<Drops, A>(vload(from + i + v * V), mean, scale, beta, factor, pixel + i + v * V, key, least));
    for (i64 v = 0; i < n; i += V, v += V) {
      const Vec<A> x = i + V <= n ? vload(from + i) : vload(from + i, static_cast<int>(n - i));
      vstore(row + v, active<Drops, A>(x, mean, scale, beta, factor, pixel + i, key, least));
    }
  }
}

// Weights of kRows outputs together, zeros past the end: [block][input][kRows].
template <class T>
void pack_rows(const T* w, i64 outputs, i64 inputs, i64 by_output, i64 by_input, Acc<T>* to) {
  for (i64 o = 0; o < outputs; o += kRows)
    for (i64 i = 0; i < inputs; ++i)
      for (i64 r = o; r < o + kRows; ++r) *to++ = r < outputs ? to_acc(w[r * by_output + i * by_input]) : Acc<T>(0);
}

// acc[r][v] += sum over k of w[k][r] * a[k][v].
template <class A, int P>
LK_INLINE void product(const A* w, const A* a, i64 depth, Vec<A> (&acc)[kRows][P]) {
  constexpr int V = kLanes<A>;
  for (i64 k = 0; k < depth; ++k, w += kRows, a += kSub<A>) {
    Vec<A> x[P];
#pragma GCC unroll 4
    for (int v = 0; v < P; ++v) {
      x[v] = vload(a + v * V);
      LK_KEEP(x[v]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Vec<A> one = every(w[r]);
#pragma GCC unroll 4
      for (int v = 0; v < P; ++v) acc[r][v] = vfma(x[v], one, acc[r][v]);
    }
  }
}

// Outputs of the first convolution, as they are stored for the statistics of the batch.
template <class T>
struct Project {
  using A = Acc<T>;
  i64 depth, rows;  // rows: outputs that exist
  i64 plane;
  const A* origin;  // a value of each output near its mean, which sums are taken about; null: no sums
  A* sums;          // [output][2][lanes]
  bool adds;        // to what is there
};

// P vectors of pixels, of which `left` pixels exist.
template <class T, int P>
void project_tile(const Project<T>& t, const Acc<T>* w, const Acc<T>* a, T* z, i64 left) {
  using A = Acc<T>;
  constexpr int V = kLanes<A>;
  Vec<A> acc[kRows][P] = {};
  product<A, P>(w, a, t.depth, acc);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    if (r >= t.rows) return;
    T* const to = z + r * t.plane;
    if (t.adds) {
#pragma GCC unroll 4
      for (int v = 0; v < P; ++v) acc[r][v] += load_line(to + v * V, left - v * V);
    }
#pragma GCC unroll 4
    for (int v = 0; v < P; ++v) store_line<T>(to + v * V, acc[r][v], left - v * V);
    if (!t.origin) continue;
    A* const total = t.sums + r * 2 * V;
    Vec<A> s = vload(total), q = vload(total + V);
    const Vec<A> origin = every(t.origin[r]);
#pragma GCC unroll 4
    for (int v = 0; v < P; ++v) {
      Vec<A> d = acc[r][v] - origin;
      if (left < (v + 1) * V) d = head<A>(d, left - v * V);
      s += d;
      q = vfma(d, d, q);
    }
    vstore(total, s);
    vstore(total + V, q);
  }
}

// A tile is one vector wide or as wide as can be: few ends of maps are worth a width of their own.
template <class T>
auto project_fn(i64 left) {
  return left <= kLanes<Acc<T>> ? project_tile<T, 1> : project_tile<T, kRun<Acc<T>>>;
}

// sums[4 x Q] of products of rows of two panels: total[r * pitch + q] += sum over pixels of g[r] * x[q].
template <class A>
constexpr int kSumWide = kLanes<A> >= 8 ? kLanes<A> / 4 : 2;

struct SubPanel {
  i64 image, pixel, count;  // count: pixels
};

template <class A>
void sum_tile(const SubPanel* subs, i64 n, const A* g, i64 g_rows, const A* x, i64 x_rows, i64 m, i64 width, A* total,
              i64 pitch) {
  constexpr int V = kLanes<A>, Q = kSumWide<A>;
  Vec<A> acc[kRows][Q] = {};
  for (i64 s = 0; s < n; ++s, g += g_rows * kSub<A>, x += x_rows * kSub<A>)
    for (i64 v = 0; v * V < subs[s].count; ++v) {
      Vec<A> b[Q];
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) {
        b[q] = vload(x + q * kSub<A> + v * V);
        LK_KEEP(b[q]);
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        Vec<A> one = vload(g + r * kSub<A> + v * V);
        LK_KEEP(one);
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) acc[r][q] = vfma(one, b[q], acc[r][q]);
      }
    }
  alignas(64) A rows[kRows * Q * V], sums[kRows * Q];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) vstore(rows + (r * Q + q) * V, acc[r][q]);
#pragma GCC unroll 8
  for (int i = 0; i < kRows * Q / V; ++i) vstore(sums + i * V, sum_rows<A>(rows + i * V * V));
  for (i64 r = 0; r < m; ++r)
    for (i64 q = 0; q < width; ++q) total[r * pitch + q] += sums[r * Q + q];
}

}  // namespace mldn
}  // namespace
