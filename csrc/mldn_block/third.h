// Version 2: what a path's new channels add to the channels that it has, by a third norm, ReLU and a 1x1 convolution.
#pragma once
#include "mldn_block/layer.h"

namespace {
namespace mldn {

// x + r, and what is lost to rounding added to `lost`.
template <class V>
LK_INLINE V sum_exactly(V x, V r, V& lost) {
  const V s = x + r, b = s - x;
  lost += (x - (s - b)) + (r - b);
  return s;
}

template <class T>
struct Third {
  using A = Acc<T>;
  static constexpr i64 V = kLanes<A>;
  const Layers<T>& layers;
  const Block& b;
  i64 kept;  // layers whose weights are packed at a time
  // Shared:
  Norm<A> norm;   // [layer, if all][path][kappa]
  A* packed;      // likewise [path][blocks of channels][kappa][kRows]
  A* origin;      // [path][channel]: about which the changed channels are summed
  double* parts;  // [path][image][segment][channel][2]
  // Of a thread:
  A *inputs, *sums, *tile;
  // What the channels lost to rounding, [image][path][channel], or null: the backward pass takes sums back, and a small
  // value under a large sum would be gone.
  T* lost = nullptr;

  Third(const Layers<T>& of, i64 layers_kept) : layers(of), b(of.b), kept(layers_kept) {}

  i64 rows() const { return round_up(b.last, kRows); }
  i64 place(i64 l, i64 path) const { return l % kept * b.p.paths + path; }
  void share(Arena& a) {
    if (!b.changes()) return;
    norm.take(a, kept * b.p.paths * b.p.kappa);
    packed = a.take<A>(kept * b.p.paths * rows() * b.p.kappa);
    origin = a.take<A>(b.p.paths * b.last);
    parts = a.take<double>(layers.units() * b.last * 2);
  }
  void own(Arena& a) {
    if (!b.changes()) return;
    inputs = a.take<A>(layers.panel * b.p.kappa);
    sums = a.take<A>(rows() * 2 * V);
    tile = a.take<A>(kRows * kSub<A>);
  }

  const T* weight(i64 l, i64 path) const { return static_cast<const T*>(layers.in.weight_sfr) + b.weight_sfr(l, path); }
  void set(i64 l, i64 path, const A* stats) {
    const A* const affine = static_cast<const A*>(layers.in.affine3);
    for (i64 k = 0; k < b.p.kappa; ++k) {
      const i64 column = (l * b.p.paths + path) * b.p.kappa + k;
      norm.set(place(l, path) * b.p.kappa + k, affine[column], affine[b.outs() + column], stats[column],
               stats[b.outs() + column], b.p.eps);
    }
  }
  void pack(i64 l, i64 path) {
    pack_rows<T>(weight(l, path), b.width(l), b.p.kappa, b.p.kappa, 1, packed + place(l, path) * rows() * b.p.kappa);
  }
  // A path's new channels, which its partner has.
  const T* hidden(i64 l, i64 path, i64 n) const { return layers.prefix(n, b.partner(l, path)) + b.width(l) * b.pixels; }

  // The changed channels at a few places: near their means, whatever those are.
  void find_origin(i64 l, i64 path) {
    const i64 images = smaller(b.p.n, 4), middle = b.pixels / 2;
    A* const to = origin + path * b.last;
    clear(to, b.last);
    for (i64 n = 0; n < images; ++n) {
      for (i64 c = 0; c < b.width(l); ++c) to[c] += to_acc(layers.prefix(n, path)[c * b.pixels + middle]);
      for (i64 k = 0; k < b.p.kappa; ++k) {
        const i64 i = place(l, path) * b.p.kappa + k;
        const A v = (to_acc(hidden(l, path, n)[k * b.pixels + middle]) - norm.mean[i]) * norm.scale[i] + norm.beta[i];
        for (i64 c = 0; v > 0 && c < b.width(l); ++c) to[c] += v * to_acc(weight(l, path)[c * b.p.kappa + k]);
      }
    }
    for (i64 c = 0; c < b.width(l); ++c) to[c] /= static_cast<A>(images);
  }

  // Pixels [first, first + count) of an image.
  void add(i64 l, i64 path, i64 n, i64 first, i64 count, bool summed) {
    const i64 at = place(l, path), kappa = b.p.kappa;
    pack_active<T, false>(hidden(l, path, n) + first, b.pixels, nullptr, kappa, count, norm.from(at * kappa), {}, 0,
                          inputs);
    for (i64 i = 0; i < count; i += kSub<A>) {
      const i64 left = smaller(kSub<A>, count - i);
      for (i64 c = 0; c < b.width(l); c += kRows) {
        const i64 channels = smaller(kRows, b.width(l) - c);
        project_fn<A>(left)({kappa, channels, kSub<A>, nullptr, nullptr, false}, packed + (at * rows() + c) * kappa,
                            inputs + i * kappa, tile, left);
        for (i64 r = 0; r < channels; ++r) change(path, n, c + r, first + i, left, tile + r * kSub<A>, summed);
      }
    }
  }
  T* losses(i64 path, i64 n, i64 c) const { return lost + ((n * b.p.paths + path) * b.last + c) * b.pixels; }
  void change(i64 path, i64 n, i64 c, i64 first, i64 count, const A* by, bool summed) {
    T* const x = layers.prefix(n, path) + c * b.pixels + first;
    T* const rest = lost ? losses(path, n, c) + first : nullptr;
    A* const total = sums + c * 2 * V;
    Vec<A> s{}, q{};
    const Vec<A> about = every(summed ? origin[path * b.last + c] : A(0));
    for (i64 v = 0; v < count; v += V) {
      const i64 left = count - v;
      Vec<A> less = rest ? load_line(rest + v, left) : Vec<A>{};
      const Vec<A> now = sum_exactly(load_line(x + v, left), vload(by + v), less);
      store_line<T>(x + v, now, left);
      if (rest) store_line<T>(rest + v, less, left);
      Vec<A> d = now - about;
      if (left < V) d = head<A>(d, left);
      s += d;
      q = vfma(d, d, q);
    }
    if (!summed) return;
    vstore(total, vload(total) + s);
    vstore(total + V, vload(total + V) + q);
  }
  void unit(i64 l, i64 u, bool summed) {
    const i64 segment = u % layers.segments, path = u / layers.segments / b.p.n, n = u / layers.segments % b.p.n;
    const i64 first = segment * layers.panel;
    if (summed) clear(sums, rows() * 2 * V);
    add(l, path, n, first, smaller(layers.panel, b.pixels - first), summed);
    double* const part = parts + u * b.last * 2;
    for (i64 i = 0; summed && i < b.width(l) * 2; ++i)
      part[i] = static_cast<double>(rsdc::sum_lanes<A>(vload(sums + i * V)));
  }

  // Statistics that the next layer's first norm needs: of what changed, and of the new channels as their norm has them.
  void merge(i64 l, const A* stats3, A* stats1) {
    const double count = static_cast<double>(b.p.n * b.pixels);
    for (i64 path = 0; path < b.p.paths; ++path) {
      const i64 width = b.width(l), to = b.shared(l + 1, path);
      for (i64 c = 0; c < width; ++c) {
        double s = 0, q = 0;
        for (i64 u = path * b.p.n * layers.segments; u < (path + 1) * b.p.n * layers.segments; ++u) {
          s += parts[(u * b.last + c) * 2];
          q += parts[(u * b.last + c) * 2 + 1];
        }
        const double m = s / count, v = q / count - m * m;
        stats1[to + c] = static_cast<A>(static_cast<double>(origin[path * b.last + c]) + m);
        stats1[b.all_shared() + to + c] = static_cast<A>(v < 0 ? 0 : v);
      }
      const i64 next = b.shared(l + 1, b.partner(l, path)) + width;
      for (i64 k = 0; k < b.p.kappa; ++k)
        for (i64 row = 0; row < 2; ++row)
          stats1[row * b.all_shared() + next + k] = stats3[row * b.outs() + (l * b.p.paths + path) * b.p.kappa + k];
    }
  }
};

}  // namespace mldn
}  // namespace
