// What the forward pass and the backward pass know of a layer: its norms, and the first convolution over the batch.
#pragma once
#include "mldn_block/layouts.h"
#include "mldn_block/maps.h"

namespace {
namespace mldn {

template <class T>
struct Layers {
  using A = Acc<T>;
  static constexpr i64 V = kLanes<A>;
  const Block& b;
  const Inputs& in;
  Maps<A> maps;
  T* y;
  i64 panel, segments;  // pixels packed at a time, and how often in a map
  // Shared by the threads:
  Norm<A> norm1, norm2;  // of one layer, [path][width] and [path][mid]
  A *packed1, *origin;   // [path][blocks of outputs][input][kRows]; about which the outputs are summed
  double* parts2;        // [path][image][segment][mid][2]
  // Of a thread:
  A *inputs, *sums;

  Layers(const Block& block, const Inputs& inputs_, void* buffer)
      : b(block),
        in(inputs_),
        maps(block.p),
        y(static_cast<T*>(buffer)),
        panel(block.panel<A>(block.last)),
        segments(ceil_div(block.pixels, panel)) {}

  i64 units() const { return b.p.n * b.p.paths * segments; }
  void share(Arena& a) {
    norm1.take(a, b.p.paths * b.last);
    norm2.take(a, b.p.paths * b.p.mid);
    packed1 = a.take<A>(b.p.paths * b.rows() * b.last);
    origin = a.take<A>(b.p.paths * b.p.mid);
    parts2 = a.take<double>(units() * b.p.mid * 2);
  }
  void own(Arena& a) {
    inputs = a.take<A>(panel * b.last);
    sums = a.take<A>(b.rows() * 2 * V);
  }

  const A* affine1(i64 row) const { return static_cast<const A*>(in.affine1) + row * b.columns(); }
  const A* affine2(i64 row) const { return static_cast<const A*>(in.affine2) + row * b.mids(); }

  // stats: of the batch, as Block says; else each layer's own, running.
  void set_norm1(i64 l, const A* stats, bool batch) {
    for (i64 path = 0; path < b.p.paths; ++path)
      for (i64 j = 0; j < b.width(l); ++j) {
        const i64 i = path * b.width(l) + j, column = b.start(l) + i;
        const i64 from = batch ? b.shared(l, path) + j : column, row = batch ? b.all_shared() : b.columns();
        norm1.set(i, affine1(0)[column], affine1(1)[column], stats[from], stats[row + from], b.p.eps);
      }
  }
  void set_norm2(i64 l, const A* stats) {
    for (i64 i = 0; i < b.p.paths * b.p.mid; ++i) {
      const i64 column = l * b.p.paths * b.p.mid + i;
      norm2.set(i, affine2(0)[column], affine2(1)[column], stats[column], stats[b.mids() + column], b.p.eps);
    }
  }
  Dropped dropped(i64 l, i64 path) const {
    return {{b.p.threshold, in.seed}, b.p.factor, b.start(l) + path * b.width(l)};
  }
  const T* weight1(i64 l, i64 path) const { return static_cast<const T*>(in.weight1) + b.weight1(l, path); }
  const T* weight3(i64 l, i64 path) const { return static_cast<const T*>(in.weight3) + b.weight3(l, path); }
  const i64* cells(i64 l, i64 path) const {
    return b.p.sets ? in.cells + (l * b.p.paths + path) * b.p.sets * b.p.taps : nullptr;
  }
  // A path's part of x into `image` of the buffer.
  void take(i64 n, i64 path, i64 image) const {
    const i64 channels = b.p.c / b.p.paths;
    to_planes(prefix(image, path),
              static_cast<const T*>(in.x) + n * in.x_image + path * channels * (in.x_pixel ? 1 : b.pixels), in.x_pixel,
              channels, b.pixels);
  }
  // A path of `image` of the buffer into one of y, which is NHWC.
  void give(T* to, i64 n, i64 path, i64 image) const {
    const i64 all = b.p.paths * b.end;
    turn(to + n * b.pixels * all + path * b.end, all, prefix(image, path), b.pixels, b.end, b.pixels);
  }
  T* prefix(i64 n, i64 path) const { return y + (n * b.p.paths + path) * b.end * b.pixels; }

  // The first convolution's outputs at a few places: near their means, whatever those are.
  void find_origin(i64 l, i64 path) {
    const i64 width = b.width(l), images = smaller(b.p.n, 4);
    for (i64 o = 0; o < b.p.mid; ++o) {
      double sum = 0;
      for (i64 n = 0; n < images; ++n)
        for (i64 c = 0; c < width; ++c) {
          const i64 i = path * width + c, at = c * b.pixels + b.pixels / 2;
          const A v = (to_acc(prefix(n, path)[at]) - norm1.mean[i]) * norm1.scale[i] + norm1.beta[i];
          if (v > 0) sum += static_cast<double>(v) * static_cast<double>(to_acc(weight1(l, path)[o * width + c]));
        }
      origin[path * b.p.mid + o] = static_cast<A>(sum / static_cast<double>(images));
    }
  }

  // One unit of the first convolution of layer l; `mid` is the layer's.
  void project(i64 l, i64 u, T* mid, bool summed) {
    const i64 segment = u % segments, path = u / segments / b.p.n, n = u / segments % b.p.n;
    const i64 first = segment * panel, count = smaller(panel, b.pixels - first), width = b.width(l);
    const T* const from = prefix(n, path) + first;
    const Dropped drops = dropped(l, path);
    const auto pack = b.p.threshold ? pack_active<T, true> : pack_active<T, false>;
    pack(from, b.pixels, nullptr, width, count, norm1.from(path * width), drops, n * b.pixels + first, inputs);
    if (summed) clear(sums, b.rows() * 2 * V);
    T* const to = mid + (n * b.p.paths + path) * b.p.mid * b.pixels + first;
    for (i64 i = 0; i < count; i += kSub<A>) {
      const i64 left = smaller(kSub<A>, count - i);
      for (i64 o = 0; o < b.p.mid; o += kRows) {
        const Project<T> tile{
            width, b.p.mid - o, b.pixels, summed ? origin + path * b.p.mid + o : nullptr, sums + o * 2 * V, false};
        project_fn<T>(left)(tile, packed1 + (path * b.rows() + o) * width, inputs + i * width, to + o * b.pixels + i,
                            left);
      }
    }
    if (!summed) return;
    double* part = parts2 + u * b.p.mid * 2;
    for (i64 i = 0; i < b.p.mid * 2; ++i) part[i] = static_cast<double>(rsdc::sum_lanes<A>(vload(sums + i * V)));
  }

  void merge2(i64 l, A* stats) {
    const double count = static_cast<double>(b.p.n * b.pixels);
    for (i64 path = 0; path < b.p.paths; ++path)
      for (i64 o = 0; o < b.p.mid; ++o) {
        double s = 0, q = 0;
        for (i64 u = path * b.p.n * segments; u < (path + 1) * b.p.n * segments; ++u) {
          s += parts2[(u * b.p.mid + o) * 2];
          q += parts2[(u * b.p.mid + o) * 2 + 1];
        }
        const i64 i = path * b.p.mid + o;
        const double m = s / count, v = q / count - m * m;
        stats[l * b.p.paths * b.p.mid + i] = static_cast<A>(static_cast<double>(origin[i]) + m);
        stats[b.mids() + l * b.p.paths * b.p.mid + i] = static_cast<A>(v < 0 ? 0 : v);
      }
  }

  void pack1(i64 l, i64 path) {
    const i64 width = b.width(l);
    pack_rows<T>(weight1(l, path), b.p.mid, width, width, 1, packed1 + path * b.rows() * width);
  }
};

}  // namespace mldn
}  // namespace
