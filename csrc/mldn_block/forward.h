// Forward over the batch: a layer is two sweeps, each of which also makes the statistics that the next one needs.
#pragma once
#include "mldn_block/third.h"

namespace {
namespace mldn {

// The second convolution from activated maps, forward: what one group of a path needs.
template <class T>
struct Second {
  using A = Acc<T>;
  static constexpr i64 V = kLanes<A>;
  const Layers<T>& layers;
  const Block& b;
  i64 kept;         // layers whose weights are packed at a time
  i64 wide, slots;  // outputs made together; packed weights of one path
  // Shared:
  A* packed;  // [layer, if all][path][output / wide][input][tap][wide], then bias [wide]
  Term* term;
  i64* count;
  // Of a thread:
  A *staged, *made;

  Second(const Layers<T>& of, i64 layers_kept)
      : layers(of),
        b(of.b),
        kept(layers_kept),
        wide(b.sets() == b.p.kappa && b.sets() > b.p.groups ? 1 : together(b.outputs())) {
    slots = ceil_div(b.outputs(), wide) * b.p.groups * block();
  }
  i64 block() const { return (b.inputs() * b.p.taps + 1) * wide; }
  void share(Arena& a) {
    packed = a.take<A>(kept * b.p.paths * slots);
    term = a.take<Term>(kept * b.p.paths * b.sets() * b.p.taps);
    count = a.take<i64>(kept * b.p.paths * b.sets());
  }
  void own(Arena& a) {
    staged = a.take<A>(b.inputs() * layers.maps.map);
    made = a.take<A>(wide * layers.maps.flat);
  }
  i64 place(i64 l, i64 path) const { return l % kept * b.p.paths + path; }
  void prepare() { clear(staged, b.inputs() * layers.maps.map); }

  void pack(i64 l, i64 path) {
    const T* const w = layers.weight3(l, path);
    const T* const bias = static_cast<const T*>(layers.in.bias3);
    const i64 taps = b.p.taps, filter = b.inputs() * taps;
    const i64 sets = place(l, path) * b.sets();
    A* to = packed + place(l, path) * slots;
    for (i64 g = 0; g < b.p.groups; ++g)
      for (i64 o = 0; o < b.outputs(); o += wide) {
        for (i64 e = 0; e < filter; ++e)
          for (i64 r = o; r < o + wide; ++r)
            *to++ = r < b.outputs() ? to_acc(w[(g * b.outputs() + r) * filter + e]) : A(0);
        for (i64 r = o; r < o + wide; ++r)
          *to++ =
              bias && r < b.outputs() ? to_acc(bias[(l * b.p.paths + path) * b.p.kappa + g * b.outputs() + r]) : A(0);
      }
    make_terms(b, layers.maps, layers.cells(l, path), false, term + sets * taps, count + sets);
  }

  // Outputs of group g from `staged` to the maps at `to`.
  void make(i64 l, i64 path, i64 g, T* to) {
    const Maps<A>& maps = layers.maps;
    for (i64 o = 0; o < b.outputs(); o += wide) {
      const A* const weights = packed + place(l, path) * slots + (g * ceil_div(b.outputs(), wide) + o / wide) * block();
      const i64 set = place(l, path) * b.sets() + b.set_of(g * b.outputs() + o);
      const rsdc::SparseTile<A> tile{b.inputs(),      maps.map,
                                     b.p.taps * wide, {term + set * b.p.taps, count + set, 0, 0},
                                     weights,         weights + block() - wide,
                                     maps.flat,       kLanes<A>,
                                     kLanes<A>};
      convolve<A>(wide, tile, staged, made, maps.vectors());
      for (i64 r = 0; r < wide && o + r < b.outputs(); ++r)
        for (i64 i = 0; i < maps.h; ++i)
          rsdc::write_line<T>(to + (o + r) * b.pixels + i * maps.w, 1, made + r * maps.flat + i * maps.pitch, maps.w);
    }
  }
};

template <class T>
struct Forward {
  using A = Acc<T>;
  const Block& b;
  const Outputs& out;
  Layers<T> layers;
  Second<T> second;
  Third<T> third;
  bool batch;
  double* parts1;  // [image][path][channel][2] of the input, then of each layer's outputs

  Forward(const Block& block, const Inputs& in, const Outputs& o)
      : b(block),
        out(o),
        layers(block, in, o.y),
        second(layers, 1),
        third(layers, 1),
        batch(block.p.batch_stats),
        parts1(nullptr) {}

  void share(Arena& a) {
    layers.share(a);
    second.share(a);
    third.share(a);
    parts1 = a.take<double>(b.p.n * larger(b.p.c, b.p.paths * b.p.kappa) * 2);
  }
  void own(Arena& a) {
    layers.own(a);
    second.own(a);
    third.own(a);
  }

  T* mid(i64 l) const { return static_cast<T*>(out.mid) + (b.p.keep ? l : 0) * b.p.n * b.p.paths * b.p.mid * b.pixels; }
  A* stats1() const { return static_cast<A*>(out.stats1); }
  A* stats2() const { return static_cast<A*>(out.stats2); }
  A* stats3() const { return static_cast<A*>(out.stats3); }
  // Version 2: the second convolution's outputs.
  T* hidden(i64 l, i64 n, i64 path) const {
    const i64 before = b.p.layers * b.p.mid + l * b.p.kappa;
    return static_cast<T*>(out.mid) + (before * b.p.n + n * b.p.kappa) * b.p.paths * b.pixels +
           path * b.p.kappa * b.pixels;
  }

  T* lost() const { return hidden(b.p.layers, 0, 0); }

  // Statistics of `channels` channels of every path, from `first` on, `step` from path to path.
  void merge(i64 channels, A* first, i64 step, i64 row) {
    for (i64 i = 0; i < b.p.paths * channels; ++i) {
      const i64 at = i / channels * step + i % channels;
      double mean, variance;
      merge_moments(parts1 + i * 2, b.p.n, b.p.paths * channels * 2, b.pixels, &mean, &variance);
      first[at] = static_cast<A>(mean);
      first[row + at] = static_cast<A>(variance);
    }
  }

  void convolve(i64 l, i64 u) {
    const i64 g = u % b.p.groups, path = u / b.p.groups % b.p.paths, n = u / b.p.groups / b.p.paths;
    const i64 inputs = b.inputs(), channel = path * b.p.mid + g * inputs, to = b.partner(l, path);
    const T* const z = mid(l) + (n * b.p.paths * b.p.mid + channel) * b.pixels;
    for (i64 i = 0; i < inputs; ++i)
      stage_active<T>(z + i * b.pixels, layers.norm2.mean[channel + i], layers.norm2.scale[channel + i],
                      layers.norm2.beta[channel + i], layers.maps, second.staged + i * layers.maps.map);
    T* const maps = layers.y + ((n * b.p.paths + to) * b.end + b.width(l) + g * b.outputs()) * b.pixels;
    second.make(l, path, g, maps);
    if (b.changes() && b.p.keep) {
      T* const also = hidden(l, n, path) + g * b.outputs() * b.pixels;
      for (i64 i = 0; i < b.outputs() * b.pixels; ++i) also[i] = maps[i];
    }
    if (!batch || (l == b.p.layers - 1 && !b.changes())) return;
    for (i64 o = 0; o < b.outputs(); ++o) {
      const i64 whose = n * b.p.paths + (b.changes() ? path : to);
      double* const part = parts1 + (whose * b.p.kappa + g * b.outputs() + o) * 2;
      moments<T>(maps + o * b.pixels, b.pixels, part, part + 1);
    }
  }

  void reactivate(i64 l) {
    const bool summed = batch && l + 1 < b.p.layers;
    if (batch) {
#pragma omp single
      merge(b.p.kappa, stats3() + l * b.p.paths * b.p.kappa, b.p.kappa, b.outs());
    }
#pragma omp for schedule(static)
    for (i64 path = 0; path < b.p.paths; ++path) {
      third.set(l, path, batch ? stats3() : static_cast<const A*>(layers.in.running3));
      if (summed) third.find_origin(l, path);
    }
#pragma omp for schedule(static)
    for (i64 u = 0; u < layers.units(); ++u) third.unit(l, u, summed);
    if (summed) {
#pragma omp single
      third.merge(l, stats3(), stats1());
    }
  }

  void work() {
    const i64 paths = b.p.paths, inputs = b.p.c / paths;
    second.prepare();
    if (b.changes() && b.p.keep) {
      third.lost = lost();
#pragma omp for schedule(static)
      for (i64 u = 0; u < b.p.n * paths; ++u) clear(third.lost + u * b.last * b.pixels, b.last * b.pixels);
    }
#pragma omp for schedule(static)
    for (i64 u = 0; u < b.p.n * paths; ++u) {
      const i64 n = u / paths, path = u % paths;
      layers.take(n, path, n);
      double* part = parts1 + u * inputs * 2;
      for (i64 c = 0; batch && c < inputs; ++c, part += 2)
        moments<T>(layers.prefix(n, path) + c * b.pixels, b.pixels, part, part + 1);
    }
    if (batch) {
#pragma omp single
      merge(inputs, stats1(), b.changes() ? inputs : b.last, b.all_shared());
    }
    for (i64 l = 0; l < b.p.layers; ++l) {
#pragma omp single
      {
        layers.set_norm1(l, batch ? stats1() : static_cast<const A*>(layers.in.running1), batch);
        if (!batch) layers.set_norm2(l, static_cast<const A*>(layers.in.running2));
      }
#pragma omp for schedule(static)
      for (i64 path = 0; path < paths; ++path) {
        layers.pack1(l, path);
        if (batch) layers.find_origin(l, path);
        second.pack(l, path);
        if (b.changes()) third.pack(l, path);
      }
#pragma omp for schedule(static)
      for (i64 u = 0; u < layers.units(); ++u) layers.project(l, back_and_forth(l, u, layers.units()), mid(l), batch);
      if (batch) {
#pragma omp single
        {
          layers.merge2(l, stats2());
          layers.set_norm2(l, stats2());
        }
      }
#pragma omp for schedule(static)
      for (i64 u = 0; u < b.p.n * paths * b.p.groups; ++u) convolve(l, u);
      if (b.changes()) {
        reactivate(l);
      } else if (batch && l + 1 < b.p.layers) {
#pragma omp single
        merge(b.p.kappa, stats1() + b.width(l), b.last, b.all_shared());
      }
    }
    if (!b.p.nhwc) return;
#pragma omp for schedule(static)
    for (i64 u = 0; u < b.p.n * paths; ++u) layers.give(static_cast<T*>(out.pixels), u / paths, u % paths, u / paths);
  }
};

template <class T>
int forward(const Params& p, const Inputs& in, const Outputs& out) {
  const Block block(p);
  Forward<T> job(block, in, out);
  return run_team(job, p.threads);
}

}  // namespace mldn
}  // namespace
