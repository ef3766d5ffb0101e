// Backward: from the last layer to the first, with one buffer of gradients for all channels that a layer reads. The
// terms by which a norm over the batch subtracts means are applied once a channel, when all its readers are done. In
// version 2, where every layer's norm has its own, they are applied when the layer before it reads the gradients, and a
// copy of the output is taken back to what each layer read.
#pragma once
#include "mldn_block/backward_first.h"
#include "mldn_block/backward_second.h"
#include "mldn_block/backward_third.h"

namespace {
namespace mldn {

template <class T>
struct Backward {
  using A = Acc<T>;
  static constexpr i64 V = kLanes<A>;
  const Block& b;
  const Outputs& out;
  const Gradients& grad;
  Layers<T> layers;
  SecondGrad<T> second;
  FirstGrad<T> first;
  ThirdGrad<T> third;
  bool batch;
  double* readers;  // [path][last][2]: sums over the readers of gamma times the gradients of beta and of gamma

  Backward(const Block& block, const Inputs& in, const Outputs& o, const Gradients& g)
      : b(block),
        out(o),
        grad(g),
        layers(block, in, block.changes() ? g.state : o.y),
        second(layers),
        first(layers),
        third(layers),
        batch(block.p.batch_stats),
        readers(nullptr) {}

  void share(Arena& a) {
    layers.share(a);
    second.share(a);
    first.share(a);
    third.share(a);
    readers = a.take<double>(b.p.paths * b.last * 2);
  }
  void own(Arena& a) {
    layers.own(a);
    second.own(a);
    first.own(a);
    third.own_memory(a);
  }

  T* mid(i64 l) const { return static_cast<T*>(out.mid) + (b.p.keep ? l : 0) * b.p.n * b.p.paths * b.p.mid * b.pixels; }
  const A* stats1() const { return static_cast<const A*>(batch ? out.stats1 : layers.in.running1); }
  const A* stats2() const { return static_cast<const A*>(batch ? out.stats2 : layers.in.running2); }
  const T* given() const { return static_cast<const T*>(grad.g); }
  A* buffer() const { return static_cast<A*>(grad.buffer); }
  A* inner() const { return static_cast<A*>(grad.inner); }
  A* fresh() const { return static_cast<A*>(grad.third); }
  // Channels of a path in the buffer. All of them where g is copied to it first.
  i64 wide() const { return b.changes() || grad.g_nhwc ? b.end : b.last; }
  i64 image() const { return b.p.paths * wide() * b.pixels; }
  const A* stats3() const { return static_cast<const A*>(batch ? out.stats3 : layers.in.running3); }
  // Version 2: the second convolution's outputs of a layer.
  const T* hidden(i64 l) const {
    return static_cast<const T*>(out.mid) + (b.p.layers * b.p.mid + l * b.p.kappa) * b.p.n * b.p.paths * b.pixels;
  }
  double samples() const { return static_cast<double>(b.p.n * b.pixels); }

  // Channel j of a path, of those that layer l (version 1: any layer) reads: what its gradient lacks.
  void finish(i64 l, i64 path, i64 j, i64 to, const Finish<A>& f) const {
    f.plain[to] = f.slope[to] = f.mean[to] = 0;
    if (!batch || l >= b.p.layers || j >= b.last) return;
    const i64 at = b.shared(l, path) + j, of = (path * b.last + j) * 2;
    const double inv = 1 / __builtin_sqrt(static_cast<double>(stats1()[b.all_shared() + at]) + b.p.eps);
    f.mean[to] = stats1()[at];
    f.plain[to] = static_cast<A>(inv * readers[of] / samples());
    f.slope[to] = static_cast<A>(inv * inv * readers[of + 1] / samples());
  }

  void begin(i64 l) {
    layers.set_norm1(l, stats1(), batch);
    layers.set_norm2(l, stats2());
    if (b.changes()) {
      for (i64 path = 0; path < b.p.paths; ++path) {
        third.forward.set(l, path, stats3());
        for (i64 j = 0; j < b.width(l) + b.p.kappa; ++j) finish(l + 1, path, j, path * b.end + j, third.less);
      }
      return;
    }
    for (i64 path = 0; path < b.p.paths; ++path)
      for (i64 k = 0; k < b.p.kappa; ++k) finish(l, path, b.width(l) + k, path * b.p.kappa + k, second.finish);
  }

  void second_unit(i64 l, i64 u) {
    const i64 to = b.partner(l, u / b.chunks);
    if (b.changes()) {
      const i64 own = b.p.kappa * b.pixels;
      second.unit(l, u, fresh() + u / b.chunks * own, b.p.paths * own, mid(l), inner(), false);
    } else if (l == b.p.layers - 1 && !grad.g_nhwc) {
      const i64 at = to * b.end + b.width(l);
      second.unit(l, u, given() + at * b.pixels, b.p.paths * b.end * b.pixels, mid(l), inner(), false);
    } else {
      const i64 at = to * wide() + b.width(l);
      second.unit(l, u, buffer() + at * b.pixels, image(), mid(l), inner(), batch && l + 1 < b.p.layers);
    }
  }
  void first_unit(i64 l, i64 u) {
    const i64 path = u / b.chunks;
    A* const to = buffer() + path * wide() * b.pixels;
    if (l == b.p.layers - 1 && wide() == b.last)
      first.unit(l, u, mid(l), inner(), given() + path * b.end * b.pixels, b.p.paths * b.end * b.pixels, to, image());
    else
      first.unit(l, u, mid(l), inner(), to, image(), to, image());
  }

  // Gradients of the inner norm, and what they take from the gradients of its inputs.
  void merge_second(i64 l) {
    A* const gaffine = static_cast<A*>(grad.affine2) + l * b.p.paths * b.p.mid;
    for (i64 path = 0; path < b.p.paths; ++path)
      for (i64 o = 0; o < b.p.mid; ++o) {
        const i64 i = path * b.p.mid + o;
        double beta = 0, gamma = 0;
        for (i64 u = path * b.chunks; u < (path + 1) * b.chunks; ++u) {
          beta += second.norms[(u * b.p.mid + o) * 2];
          gamma += second.norms[(u * b.p.mid + o) * 2 + 1];
        }
        const double inv = static_cast<double>(layers.norm2.inv[i]);
        gamma *= inv;
        gaffine[i] = static_cast<A>(gamma);
        gaffine[b.mids() + i] = static_cast<A>(beta);
        first.plain[i] = batch ? static_cast<A>(beta / samples()) : A(0);
        first.slope[i] = batch ? static_cast<A>(inv * gamma / samples()) : A(0);
      }
    if (!grad.bias3) return;
    T* const bias = static_cast<T*>(grad.bias3) + l * b.p.paths * b.p.kappa;
    for (i64 i = 0; i < b.p.paths * b.p.kappa; ++i) {
      double sum = 0;
      for (i64 c = 0; c < b.chunks; ++c)
        sum += second.biases[(i / b.p.kappa * b.chunks + c) * b.p.kappa + i % b.p.kappa];
      bias[i] = from_acc<T>(static_cast<A>(sum));
    }
  }
  void merge_first(i64 l) {
    const i64 width = b.width(l);
    for (i64 path = 0; path < b.p.paths; ++path)
      for (i64 j = 0; j < width; ++j) {
        const i64 i = path * width + j, column = b.start(l) + i;
        double beta = 0, gamma = 0;
        for (i64 u = path * b.chunks; u < (path + 1) * b.chunks; ++u) {
          beta += first.norms[(u * b.last + j) * 2];
          gamma += first.norms[(u * b.last + j) * 2 + 1];
        }
        gamma *= static_cast<double>(layers.norm1.inv[i]);
        static_cast<A*>(grad.affine1)[column] = static_cast<A>(gamma);
        static_cast<A*>(grad.affine1)[b.columns() + column] = static_cast<A>(beta);
        const double weight = static_cast<double>(layers.affine1(0)[column]);
        double* const reader = readers + (path * b.last + j) * 2;
        const bool others = !b.changes();  // readers of the same values
        reader[0] = weight * beta + (others ? reader[0] : 0);
        reader[1] = weight * gamma + (others ? reader[1] : 0);
      }
  }
  // Row o of the first convolution's weights, all of the second's; sums of the chunks in their order.
  void merge_weights1(i64 l, i64 row) {
    const i64 width = b.width(l), path = row / b.p.mid, o = row % b.p.mid;
    T* const to = static_cast<T*>(grad.weight1) + b.weight1(l, path) + o * width;
    const A* const from = first.weights + path * b.chunks * first.unit_weights() + o * width;
    for (i64 j = 0; j < width; ++j) {
      A sum = 0;
      for (i64 c = 0; c < b.chunks; ++c) sum += from[c * first.unit_weights() + j];
      to[j] = from_acc<T>(sum);
    }
  }
  void merge_weights3(i64 l, i64 path) {
    const i64 n = b.p.kappa * second.filter();
    T* const to = static_cast<T*>(grad.weight3) + b.weight3(l, path);
    for (i64 i = 0; i < n; ++i) {
      A sum = 0;
      for (i64 c = 0; c < b.chunks; ++c) sum += second.weights[(path * b.chunks + c) * n + i];
      to[i] = from_acc<T>(sum);
    }
  }

  // `pixels` of the gradient of input channel j of a path of image n, from pixel `first` on.
  void finish_line(i64 n, i64 path, i64 j, i64 first, i64 pixels, T* to) const {
    A plain, slope, mean;
    finish(0, path, j, 0, {&plain, &slope, &mean});
    const A* const d = buffer() + n * image() + (path * wide() + j) * b.pixels + first;
    const T* const x = layers.prefix(n, path) + j * b.pixels + first;
    for (i64 i = 0; i < pixels; i += V) {
      const i64 left = pixels - i;
      Vec<A> v = load_line(d + i, left);
      if (batch) v -= every(plain) + (load_line(x + i, left) - every(mean)) * every(slope);
      store_line<T>(to + i, v, left);
    }
  }
  // The gradient of a path's part of image n.
  void finish_input(i64 n, i64 path) const {
    const i64 own = b.p.c / b.p.paths;
    T* const to = static_cast<T*>(grad.x) + n * b.p.c * b.pixels;
    if (!b.p.nhwc) {
      for (i64 j = 0; j < own; ++j) finish_line(n, path, j, 0, b.pixels, to + (path * own + j) * b.pixels);
      return;
    }
    constexpr i64 run = 128;
    alignas(64) T part[kCorner * run];
    for (i64 i = 0; i < b.pixels; i += run)
      for (i64 j = 0; j < own; j += kCorner) {
        const i64 pixels = smaller(run, b.pixels - i), channels = smaller(kCorner, own - j);
        for (i64 c = 0; c < channels; ++c) finish_line(n, path, j + c, i, pixels, part + c * run);
        turn(to + i * b.p.c + path * own + j, b.p.c, part, run, channels, pixels);
      }
  }

  // What the forward pass gave, and what came for it, into planes.
  void begin_planes(i64 n, i64 path) const {
    const i64 all = b.p.paths * b.end, from = n * b.pixels * all + path * b.end * (b.p.nhwc ? 1 : b.pixels);
    const i64 given_from = n * b.pixels * all + path * b.end * (grad.g_nhwc ? 1 : b.pixels);
    if (b.p.nhwc || b.changes())  // version 1 does not read what its last layer made
      to_planes(layers.prefix(n, path), static_cast<const T*>(b.p.nhwc ? out.pixels : out.y) + from, b.p.nhwc ? all : 0,
                b.changes() ? b.end : b.last, b.pixels);
    if (wide() == b.end)
      to_planes(buffer() + n * image() + path * b.end * b.pixels, given() + given_from, grad.g_nhwc ? all : 0, b.end,
                b.pixels);
  }

  void reactivate(i64 l) {
    const i64 paths = b.p.paths, units = paths * b.chunks;
#pragma omp for schedule(static)
    for (i64 u = 0; u < units; ++u) third.unit(l, u, hidden(l), buffer(), fresh());
#pragma omp single
    third.merge(l, batch, static_cast<A*>(grad.affine3));
#pragma omp for schedule(static)
    for (i64 path = 0; path < paths; ++path) third.merge_weights(l, path, static_cast<T*>(grad.weight_sfr));
#pragma omp for schedule(static)
    for (i64 u = 0; u < b.p.n * paths; ++u) third.join(l, u / paths, u % paths, hidden(l), buffer(), fresh());
  }

  void work() {
    const i64 paths = b.p.paths, units = paths * b.chunks;
    second.prepare();
    first.prepare();
    third.prepare();
    third.forward.lost = static_cast<T*>(grad.lost);
#pragma omp single
    {
      clear(readers, paths * b.last * 2);
      clear(second.zeros, kRows);
    }
#pragma omp for schedule(static)
    for (i64 u = 0; u < b.p.n * paths; ++u) begin_planes(u / paths, u % paths);
    for (i64 l = b.p.layers - 1; l >= 0; --l) {
#pragma omp single
      begin(l);
#pragma omp for schedule(static)
      for (i64 path = 0; path < paths; ++path) {
        first.pack(l, path);
        second.pack(l, path);
        if (!b.p.keep) layers.pack1(l, path);
        if (b.changes()) third.pack(l, path);
      }
      if (b.changes()) reactivate(l);
      if (!b.p.keep) {
#pragma omp for schedule(static)
        for (i64 u = 0; u < layers.units(); ++u) layers.project(l, back_and_forth(l, u, layers.units()), mid(l), false);
      }
#pragma omp for schedule(static)
      for (i64 u = 0; u < units; ++u) second_unit(l, u);
#pragma omp single
      merge_second(l);
#pragma omp for schedule(static)
      for (i64 u = 0; u < units; ++u) first_unit(l, back_and_forth(l, u, units));
#pragma omp single
      merge_first(l);
#pragma omp for schedule(static)
      for (i64 row = 0; row < paths * b.p.mid; ++row) merge_weights1(l, row);
#pragma omp for schedule(static)
      for (i64 path = 0; path < paths; ++path) merge_weights3(l, path);
    }
#pragma omp for schedule(static)
    for (i64 u = 0; u < b.p.n * paths; ++u) finish_input(u / paths, u % paths);
  }
};

template <class T>
int backward(const Params& p, const Inputs& in, const Outputs& out, const Gradients& grad) {
  const Block block(p);
  Backward<T> job(block, in, out, grad);
  return run_team(job, p.threads);
}

}  // namespace mldn
}  // namespace
