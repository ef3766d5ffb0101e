// Backward through the first convolution, its inputs' norm and ReLU: what a layer adds to the gradients of the channels
// it reads, gradients of its weights, and the two sums of the norm.
#pragma once
#include "mldn_block/layer.h"

namespace {
namespace mldn {

constexpr i64 kInputs = 8;  // inputs whose products with all outputs are summed in one go

template <class A>
struct Backproject {
  i64 depth, rows, plane;  // rows: inputs that exist
  Norm<A> norm;
  A* sums;  // [input][2][lanes]
  Dropped dropped;
  i64 input, pixel;       // number of the first of them, of the first pixel
  i64 x_next, from_next;  // from these inputs to those of the next sub-panel
};

// x: inputs; from, to: gradients before and after this layer's; live: activated inputs.
template <class T, class D, bool Drops, int P>
void backproject_tile(const Backproject<Acc<T>>& t, const Acc<T>* w, const Acc<T>* g, const T* x, const D* from,
                      Acc<T>* to, Acc<T>* live, i64 left) {
  using A = Acc<T>;
  constexpr int V = kLanes<A>;
  // What the same inputs' next tile reads arrives while this one computes.
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kRun<A>; ++v) {
      __builtin_prefetch(x + t.x_next + r * t.plane + v * V, 0, 3);
      __builtin_prefetch(from + t.from_next + r * t.plane + v * V, 0, 3);
    }
  Vec<A> acc[kRows][P] = {};
  product<A, P>(w, g, t.depth, acc);
  const std::uint32_t least = t.dropped.drop.threshold;
  const Vec<A> factor = every(static_cast<A>(t.dropped.factor));
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    if (r >= t.rows) return;
    const std::uint32_t key = Drops ? t.dropped.drop.key(t.dropped.row + t.input + r) : 0;
    const Vec<A> scale = every(t.norm.scale[r]), beta = every(t.norm.beta[r]), mean = every(t.norm.mean[r]);
    A* const total = t.sums + r * 2 * V;
    Vec<A> s = vload(total), q = vload(total + V);
#pragma GCC unroll 4
    for (int v = 0; v < P; ++v) {
      const i64 at = r * t.plane + v * V, n = left - v * V;
      const Vec<A> one = load_line(x + at, n), before = load_line(from + at, n);
      const Vec<A> d = one - mean, u = vfma(d, scale, beta);
      Vec<A> a = relu(u), b = acc[r][v];
      if constexpr (Drops) {
        a = kept<A>(a * factor, t.pixel + v * V, key, least);
        b = kept<A>(b * factor, t.pixel + v * V, key, least);
      }
      b = where_positive(u, b);
      vstore(live + r * kSub<A> + v * V, a);
      s += b;
      q = vfma(b, d, q);
      store_line<A>(to + at, vfma(b, scale, before), n);
    }
    vstore(total, s);
    vstore(total + V, q);
  }
}

template <class T, class D>
auto backproject_fn(bool drops, i64 left) {
  constexpr int P = kRun<Acc<T>>;
  if (left <= kLanes<Acc<T>>) return drops ? backproject_tile<T, D, true, 1> : backproject_tile<T, D, false, 1>;
  return drops ? backproject_tile<T, D, true, P> : backproject_tile<T, D, false, P>;
}

template <class T>
struct FirstGrad {
  using A = Acc<T>;
  static constexpr i64 V = kLanes<A>, S = kSub<A>;
  const Layers<T>& layers;
  const Block& b;
  i64 most;  // sub-panels of a panel
  // Shared:
  A* packed;         // [path][blocks of inputs][output][kRows]
  A *plain, *slope;  // of the inner norm: [path][mid]
  A* weights;        // [path][chunk][mid][width]
  double* norms;     // [path][chunk][width][2]
  // Of a thread:
  SubPanel* subs;
  A *grads, *live, *sums;

  explicit FirstGrad(const Layers<T>& of) : layers(of), b(of.b), most(larger(1, kPanel / S)) {}
  i64 unit_weights() const { return b.p.mid * b.last; }
  i64 wide() const { return round_up(b.last, kInputs); }
  void share(Arena& a) {
    const i64 units = b.p.paths * b.chunks;
    packed = a.take<A>(b.p.paths * b.p.mid * wide());
    plain = a.take<A>(b.p.paths * b.p.mid);
    slope = a.take<A>(b.p.paths * b.p.mid);
    weights = a.take<A>(units * unit_weights());
    norms = a.take<double>(units * b.last * 2);
  }
  void own(Arena& a) {
    subs = a.take<SubPanel>(most);
    grads = a.take<A>(most * b.rows() * S);
    live = a.take<A>(most * kInputs * S);
    sums = a.take<A>(wide() * 2 * V);
  }
  void prepare() {
    clear(grads, most * b.rows() * S);
    clear(live, most * kInputs * S);
  }
  void pack(i64 l, i64 path) {
    const i64 width = b.width(l);
    pack_rows<T>(layers.weight1(l, path), width, b.p.mid, 1, width, packed + path * b.p.mid * wide());
  }

  // Gradients of the first convolution's outputs; maps are read line after line.
  void fill(i64 count, i64 path, const T* mid, const A* inner) {
    for (i64 o = 0; o < b.p.mid; ++o) {
      const i64 c = path * b.p.mid + o;
      const Vec<A> scale = every(layers.norm2.scale[c]), mean = every(layers.norm2.mean[c]), less = every(plain[c]),
                   by = every(slope[c]);
      for (i64 s = 0; s < count; ++s) {
        const i64 at = (subs[s].image * b.p.paths * b.p.mid + c) * b.pixels + subs[s].pixel;
        A* const to = grads + (s * b.rows() + o) * S;
        for (i64 v = 0; v < kRun<A>; ++v) {
          const i64 n = subs[s].count - v * V;
          Vec<A> g = load_line(inner + at + v * V, n) - less;
          g = vfma(mean - load_line(mid + at + v * V, n), by, g) * scale;
          if (n < V) g = head<A>(g, n);
          vstore(to + v * V, g);
        }
      }
    }
  }

  // One panel: sub-panels subs[0, n).
  template <class D>
  void add(i64 l, i64 path, i64 n, const T* mid, const A* inner, const D* from, i64 from_image, A* to, i64 to_image,
           A* total) {
    const i64 width = b.width(l);
    fill(n, path, mid, inner);
    for (i64 c = 0; c < width; c += kInputs) {
      const i64 inputs = smaller(kInputs, width - c);
      for (i64 s = 0; s < n; ++s) {
        const SubPanel& sub = subs[s];
        // After the last sub-panel come the next inputs of the first one.
        const SubPanel& next = subs[s + 1 < n ? s + 1 : 0];
        const i64 jump = next.pixel - sub.pixel + (s + 1 < n ? 0 : kInputs * b.pixels), images = next.image - sub.image;
        for (i64 r = 0; r < inputs; r += kRows) {
          const i64 at = (c + r) * b.pixels + sub.pixel;
          const Backproject<A> tile{b.p.mid,
                                    inputs - r,
                                    b.pixels,
                                    layers.norm1.from(path * width + c + r),
                                    sums + (c + r) * 2 * V,
                                    layers.dropped(l, path),
                                    c + r,
                                    sub.image * b.pixels + sub.pixel,
                                    images * b.p.paths * b.end * b.pixels + jump,
                                    images * from_image + jump};
          backproject_fn<T, D>(b.p.threshold, sub.count)(
              tile, packed + path * b.p.mid * wide() + (c + r) * b.p.mid, grads + s * b.rows() * S,
              layers.prefix(sub.image, path) + at, from + sub.image * from_image + at, to + sub.image * to_image + at,
              live + (s * kInputs + r) * S, sub.count);
        }
      }
      for (i64 q = 0; q < inputs; q += kSumWide<A>)
        for (i64 o = 0; o < b.p.mid; o += kRows)
          sum_tile<A>(subs, n, grads + o * S, b.rows(), live + q * S, kInputs, smaller(kRows, b.p.mid - o),
                      smaller(kSumWide<A>, inputs - q), total + o * width + c + q, width);
    }
  }

  template <class D>
  void unit(i64 l, i64 u, const T* mid, const A* inner, const D* from, i64 from_image, A* to, i64 to_image) {
    const i64 path = u / b.chunks, chunk = u % b.chunks, width = b.width(l);
    A* const total = weights + u * unit_weights();
    clear(total, b.p.mid * width);
    clear(sums, wide() * 2 * V);
    i64 count = 0;
    const auto flush = [&] {
      if (count) add(l, path, count, mid, inner, from, from_image, to, to_image, total);
      count = 0;
    };
    for (i64 n = b.first_image(chunk); n < b.first_image(chunk + 1); ++n)
      for (i64 i = 0; i < b.pixels; i += S) {
        subs[count++] = {n, i, smaller(S, b.pixels - i)};
        if (count == most) flush();
      }
    flush();
    for (i64 i = 0; i < width * 2; ++i)
      norms[u * b.last * 2 + i] = static_cast<double>(rsdc::sum_lanes<A>(vload(sums + i * V)));
  }
};

}  // namespace mldn
}  // namespace
