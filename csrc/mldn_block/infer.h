// Evaluation without gradients: image by image through all layers, so that maps stay in cache; fewer images than
// threads are cut into pieces, layer by layer. Norms are constants, and the arithmetic is that of the forward pass.
#pragma once
#include "mldn_block/forward.h"
#include "mldn_block/reach.h"

namespace {
namespace mldn {

// Activated outputs of the first convolution, `pitch` apart; rows: how many exist, of which norm holds the constants.
template <class A, int P>
void activate_tile(i64 depth, i64 rows, i64 pitch, const Norm<A>& norm, const A* w, const A* a, A* to) {
  constexpr int V = kLanes<A>;
  Vec<A> acc[kRows][P] = {};
  product<A, P>(w, a, depth, acc);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) return;
    const Vec<A> mean = every(norm.mean[r]), scale = every(norm.scale[r]), beta = every(norm.beta[r]);
#pragma GCC unroll 4
    for (int v = 0; v < P; ++v) vstore(to + r * pitch + v * V, relu(vfma(acc[r][v] - mean, scale, beta)));
  }
}
template <class A>
auto activate_fn(i64 left) {
  return left <= kLanes<A> ? activate_tile<A, 1> : activate_tile<A, kRun<A>>;
}

template <class T>
struct Infer {
  using A = Acc<T>;
  static constexpr i64 V = kLanes<A>;
  const Block& b;
  Layers<T> layers;
  Second<T> second;
  Third<T> third;
  Reach<T> reach;    // in the place of third, where condensed
  bool cut;          // an image among the threads
  i64 groups, part;  // of the first convolution: groups, each of which reads 1 / part of the inputs
  i64 block;         // outputs of a group, whole tiles
  i64 pitch, panel;  // pixels of a map, whole tiles; pixels packed at a time
  T* const y;
  // Shared, of all layers:
  Norm<A> norm1;  // [layer][path][group][input]
  i64* chosen;    // likewise: which channel of the path
  A* packed;      // [layer][path][group][output / kRows][input][kRows]
  Norm<A> norm2;  // [layer][path][group][block]
  // Of a thread:
  A *inputs, *inner;  // inner: [mid][pitch], of one path; if cut, of all paths and shared

  Infer(const Block& whole, const Inputs& in, void* to)
      : b(whole),
        layers(whole, in, to),
        second(layers, whole.p.layers),
        third(layers, whole.p.layers),
        reach(layers),
        cut(whole.p.n < whole.p.threads),
        groups(whole.p.index_groups ? whole.p.index_groups : 1),
        part(whole.p.condense),
        block(round_up(ceil_div(whole.p.mid, groups), kRows)),
        pitch(round_up(whole.pixels, kSub<A>)),
        panel(whole.panel<A>(groups * whole.last / part)),
        y(static_cast<T*>(to)) {
    if (cut) panel = smaller(panel, round_up(ceil_div(whole.pixels, whole.p.threads), kSub<A>));
  }

  bool picks() const { return b.changes() && b.p.index_groups > 0; }
  i64 depth(i64 l) const { return b.width(l) / part; }
  // Inputs of all groups before layer l and path.
  i64 column(i64 l, i64 path) const { return groups * (b.start(l) + path * b.width(l)) / part; }
  i64 columns() const { return groups * b.columns() / part; }
  void share(Arena& a) {
    norm1.take(a, columns());
    chosen = a.take<i64>(columns());
    packed = a.take<A>(columns() * block);
    norm2.take(a, b.p.layers * b.p.paths * groups * block);
    second.share(a);
    picks() ? reach.share(a) : third.share(a);
    if (cut) inner = a.take<A>(b.p.paths * b.p.mid * pitch);
    // An image of each thread, or all.
    if (b.p.nhwc) layers.y = a.take<T>(smaller(b.p.n, b.p.threads) * b.p.paths * b.end * b.pixels);
  }
  void own(Arena& a) {
    second.own(a);
    picks() ? reach.own(a) : third.own(a);
    inputs = a.take<A>(panel * groups * depth(b.p.layers - 1));
    if (!cut) inner = a.take<A>(b.p.mid * pitch);
  }

  void pack(i64 l, i64 path) {
    const A *const affine1 = static_cast<const A*>(layers.in.affine1),
                   *const running1 = static_cast<const A*>(layers.in.running1),
                   *const running2 = static_cast<const A*>(layers.in.running2);
    for (i64 i = column(l, path); i < column(l, path) + groups * depth(l); ++i)
      norm1.set(i, affine1[i], affine1[columns() + i], running1[i], running1[columns() + i], b.p.eps);
    const i64* const index = layers.in.index;
    for (i64 i = column(l, path); index && i < column(l, path) + groups * depth(l); ++i) {
      chosen[i] = index[i];
      if (index[i] >= 0 && index[i] < b.width(l)) continue;
      chosen[i] = 0;  // there is no such channel: zeros
      norm1.scale[i] = norm1.beta[i] = 0;
    }
    const T* const w = static_cast<const T*>(layers.in.weight1) + b.p.mid * (b.start(l) + path * b.width(l)) / part;
    A* to = packed + column(l, path) * block;
    i64 at = (l * b.p.paths + path) * groups * block;
    for (i64 g = 0; g < groups; ++g)
      for (i64 q = 0; q < block; q += kRows) {
        for (i64 o = q * groups + g; o < (q + kRows) * groups + g; o += groups, ++at) {
          const i64 i = (l * b.p.paths + path) * b.p.mid + o;
          if (o < b.p.mid)
            norm2.set(at, layers.affine2(0)[i], layers.affine2(1)[i], running2[i], running2[b.mids() + i], b.p.eps);
        }
        for (i64 k = 0; k < depth(l); ++k)
          for (i64 r = 0; r < kRows; ++r) {
            const i64 o = (q + r) * groups + g;
            *to++ = o < b.p.mid ? to_acc(w[o * depth(l) + k]) : A(0);
          }
      }
    second.pack(l, path);
    if (picks()) return reach.pack(l, path);
    if (!b.changes()) return;
    third.pack(l, path);
    third.set(l, path, static_cast<const A*>(layers.in.running3));
  }

  i64 panels() const { return ceil_div(b.pixels, panel); }
  // Panels [begin, end) of a path's first convolution, activated, to `maps`.
  void first(i64 l, i64 path, i64 n, i64 begin, i64 end, A* maps) {
    const i64 channels = groups * depth(l), least = column(l, path);
    const i64* const index = layers.in.index ? chosen + least : nullptr;
    for (i64 from = begin * panel; from < smaller(end * panel, b.pixels); from += panel) {
      const i64 count = smaller(panel, b.pixels - from);
      pack_active<T, false>(layers.prefix(n, path) + from, b.pixels, index, channels, count, norm1.from(least), {}, 0,
                            inputs);
      for (i64 i = 0; i < count; i += kSub<A>) {
        for (i64 g = 0; g < groups; ++g)
          for (i64 q = 0; q < block && q * groups + g < b.p.mid; q += kRows)
            activate_fn<A>(count - i)(depth(l), ceil_div(b.p.mid - g - q * groups, groups), groups * pitch,
                                      norm2.from(((l * b.p.paths + path) * groups + g) * block + q),
                                      packed + least * block + (g * block + q) * depth(l),
                                      inputs + i * channels + g * depth(l) * kSub<A>,
                                      maps + (q * groups + g) * pitch + from + i);
      }
    }
  }

  void convolve(i64 l, i64 path, i64 n, i64 g, const A* active) {
    const Maps<A>& maps = layers.maps;
    for (i64 i = 0; i < b.inputs(); ++i)
      for (i64 r = 0; r < maps.h; ++r)
        rsdc::read_line<A>(second.staged + i * maps.map + maps.origin() + r * maps.pitch,
                           active + (g * b.inputs() + i) * pitch + r * maps.w, 1, maps.w);
    second.make(l, path, g, layers.prefix(n, b.partner(l, path)) + (b.width(l) + g * b.outputs()) * b.pixels);
  }

  void react(i64 l, i64 u) { picks() ? reach.unit(l, u) : third.unit(l, u, false); }

  // n: of those in the buffer.
  void image(i64 n) {
    for (i64 l = 0; l < b.p.layers; ++l) {
      for (i64 path = 0; path < b.p.paths; ++path) {
        first(l, path, n, 0, panels(), inner);
        for (i64 g = 0; g < b.p.groups; ++g) convolve(l, path, n, g, inner);
      }
      for (i64 path = 0; b.changes() && path < b.p.paths; ++path)
        for (i64 s = 0; s < layers.segments; ++s) react(l, (path * b.p.n + n) * layers.segments + s);
    }
  }
  // The same, by all threads together.
  void cut_image(i64 n) {
    for (i64 l = 0; l < b.p.layers; ++l) {
#pragma omp for schedule(static)
      for (i64 u = 0; u < b.p.paths * panels(); ++u) {
        const i64 path = u / panels(), at = u % panels();
        first(l, path, n, at, at + 1, inner + path * b.p.mid * pitch);
      }
#pragma omp for schedule(static)
      for (i64 u = 0; u < b.p.paths * b.p.groups; ++u) {
        const i64 path = u / b.p.groups;
        convolve(l, path, n, u % b.p.groups, inner + path * b.p.mid * pitch);
      }
      if (b.changes()) {
#pragma omp for schedule(static)
        for (i64 u = 0; u < b.p.paths * layers.segments; ++u)
          react(l, (u / layers.segments * b.p.n + n) * layers.segments + u % layers.segments);
      }
    }
  }

  void work() {
#ifdef _OPENMP
    const i64 me = omp_get_thread_num();
#else
    const i64 me = 0;
#endif
    const i64 paths = b.p.paths;
    second.prepare();
#pragma omp for schedule(static)
    for (i64 i = 0; i < b.p.layers * b.p.paths; ++i) pack(i / b.p.paths, i % b.p.paths);
    if (cut) {
#pragma omp for schedule(static)
      for (i64 u = 0; u < b.p.n * paths; ++u) layers.take(u / paths, u % paths, u / paths);
      for (i64 n = 0; n < b.p.n; ++n) cut_image(n);
      if (!b.p.nhwc) return;
#pragma omp for schedule(static)
      for (i64 u = 0; u < b.p.n * paths; ++u) layers.give(y, u / paths, u % paths, u / paths);
      return;
    }
#pragma omp for schedule(static)
    for (i64 n = 0; n < b.p.n; ++n) {
      const i64 at = b.p.nhwc ? me : n;
      for (i64 path = 0; path < paths; ++path) layers.take(n, path, at);
      image(at);
      for (i64 path = 0; b.p.nhwc && path < paths; ++path) layers.give(y, n, path, at);
    }
  }
};

template <class T>
int infer(const Params& p, const Inputs& in, void* y) {
  const Block block(p);
  Infer<T> job(block, in, y);
  return run_team(job, p.threads);
}

}  // namespace mldn
}  // namespace
