// Evaluation without gradients: image by image through all layers, so that maps stay in cache. Norms are constants, and
// the arithmetic is that of the forward pass.
#pragma once
#include "mldn_block/forward.h"

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
using ActivateFn = void (*)(i64, i64, i64, const Norm<A>&, const A*, const A*, A*);
template <class A>
ActivateFn<A> activate_fn(i64 vectors) {
  static constexpr ActivateFn<A> fn[] = {nullptr, activate_tile<A, 1>, activate_tile<A, 2>, activate_tile<A, 3>,
#if defined(__AVX512F__)
                                         activate_tile<A, 4>
#endif
  };
  return fn[vectors];
}

template <class T>
struct Infer {
  using A = Acc<T>;
  static constexpr i64 V = kLanes<A>;
  const Block& b;
  Layers<T> layers;
  Second<T> second;
  i64 groups, part;  // of the first convolution: groups, each of which reads 1 / part of the inputs
  i64 block;         // outputs of a group, whole tiles
  i64 pitch, panel;  // pixels of a map, whole vectors; pixels packed at a time
  // Shared, of all layers:
  Norm<A> norm1;  // [layer][path][group][input]
  i64* chosen;    // likewise: which channel of the path
  A* packed;      // [layer][path][group][output / kRows][input][kRows]
  Norm<A> norm2;  // [layer][path][group][block]
  // Of a thread:
  A *inputs, *inner;  // inner: [mid][pitch]

  Infer(const Block& whole, const Inputs& in, void* y)
      : b(whole),
        layers(whole, in, y),
        second(layers, whole.p.layers),
        groups(whole.p.index_groups ? whole.p.index_groups : 1),
        part(whole.p.condense),
        block(round_up(ceil_div(whole.p.mid, groups), kRows)),
        pitch(round_up(whole.pixels, V)),
        panel(whole.panel<A>(groups * whole.last / part)) {}

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
  }
  void own(Arena& a) {
    second.own(a);
    inputs = a.take<A>(panel * groups * depth(b.p.layers - 1));
    inner = a.take<A>(b.p.mid * pitch);
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
  }

  void first(i64 l, i64 path, i64 n) {
    const i64 channels = groups * depth(l), least = column(l, path);
    const i64* const index = layers.in.index ? chosen + least : nullptr;
    for (i64 from = 0; from < b.pixels; from += panel) {
      const i64 count = smaller(panel, b.pixels - from);
      pack_active<T, false>(layers.prefix(n, path) + from, b.pixels, index, channels, count, norm1.from(least), {}, 0,
                            inputs);
      for (i64 i = 0; i < count; i += kSub<A>) {
        const i64 vectors = ceil_div(smaller(kSub<A>, count - i), V);
        for (i64 g = 0; g < groups; ++g)
          for (i64 q = 0; q < block && q * groups + g < b.p.mid; q += kRows)
            activate_fn<A>(vectors)(depth(l), ceil_div(b.p.mid - g - q * groups, groups), groups * pitch,
                                    norm2.from(((l * b.p.paths + path) * groups + g) * block + q),
                                    packed + least * block + (g * block + q) * depth(l),
                                    inputs + i * channels + g * depth(l) * kSub<A>,
                                    inner + (q * groups + g) * pitch + from + i);
      }
    }
  }

  void image(i64 n) {
    const Maps<A>& maps = layers.maps;
    for (i64 l = 0; l < b.p.layers; ++l)
      for (i64 path = 0; path < b.p.paths; ++path) {
        first(l, path, n);
        for (i64 g = 0; g < b.p.groups; ++g) {
          for (i64 i = 0; i < b.inputs(); ++i)
            for (i64 r = 0; r < maps.h; ++r)
              rsdc::read_line<A>(second.staged + i * maps.map + maps.origin() + r * maps.pitch,
                                 inner + (g * b.inputs() + i) * pitch + r * maps.w, 1, maps.w);
          second.make(
              l, path, g,
              layers.y + ((n * b.p.paths + b.partner(l, path)) * b.end + b.width(l) + g * b.outputs()) * b.pixels);
        }
      }
  }

  void work() {
    second.prepare();
#pragma omp for schedule(static)
    for (i64 i = 0; i < b.p.layers * b.p.paths; ++i) pack(i / b.p.paths, i % b.p.paths);
#pragma omp for schedule(static)
    for (i64 n = 0; n < b.p.n; ++n) image(n);
  }
};

template <class T>
int infer(const Params& p, const Inputs& in, void* y) {
  const Block block(p);
  Infer<T> job(block, in, y);
  return run(job, p.threads);
}

}  // namespace mldn
}  // namespace
