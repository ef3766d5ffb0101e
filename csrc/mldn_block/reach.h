// Condensed version 2 in evaluation: a channel adds up only the new channels whose groups reach it.
#pragma once
#include "mldn_block/third.h"

namespace {
namespace mldn {

template <class T>
struct Reach {
  using A = Acc<T>;
  static constexpr i64 V = kLanes<A>;
  const Layers<T>& layers;
  const Block& b;
  i64 groups, part;  // of the new channels; a group reaches 1 / part of the channels
  // Shared, of all layers:
  Norm<A> norm;  // [layer][path][kappa]
  i64* begin;    // [layer][path][channel, and the end]: its terms
  i64* source;   // of a term: where a sub-panel has the new channel
  A* weight;
  // Of a thread:
  A* inputs;

  explicit Reach(const Layers<T>& of)
      : layers(of), b(of.b), groups(larger(1, of.b.p.index_groups)), part(of.b.p.condense) {}

  i64 block(i64 l, i64 path) const { return l * b.p.paths + path; }
  i64 column(i64 l, i64 path) const { return b.start(l) + path * b.width(l); }
  i64* begins(i64 l, i64 path) const { return begin + column(l, path) + block(l, path); }
  void share(Arena& a) {
    norm.take(a, b.outs());
    begin = a.take<i64>(b.columns() + b.p.layers * b.p.paths);
    source = a.take<i64>(b.columns() / part * b.p.kappa);
    weight = a.take<A>(b.columns() / part * b.p.kappa);
  }
  void own(Arena& a) { inputs = a.take<A>(layers.panel * b.p.kappa); }

  void pack(i64 l, i64 path) {
    const A *const affine = static_cast<const A*>(layers.in.affine3), *const running =
                                                                          static_cast<const A*>(layers.in.running3);
    for (i64 i = block(l, path) * b.p.kappa; i < (block(l, path) + 1) * b.p.kappa; ++i)
      norm.set(i, affine[i], affine[b.outs() + i], running[i], running[b.outs() + i], b.p.eps);
    const i64 width = b.width(l), rows = groups * width / part, each = b.p.kappa / groups;
    const i64 first = column(l, path) / part * b.p.kappa;
    const i64* const index = layers.in.index_sfr + column(l, path) / part * groups;
    const T* const w = static_cast<const T*>(layers.in.weight_sfr) + first;
    i64* const at = begins(l, path);
    for (i64 c = 0; c <= width; ++c) at[c] = 0;
    const auto exists = [&](i64 row) { return index[row] >= 0 && index[row] < width; };
    for (i64 row = 0; row < rows; ++row)
      if (exists(row)) at[index[row] + 1] += each;
    at[0] = first;
    for (i64 c = 0; c < width; ++c) at[c + 1] += at[c];
    // Each beginning moves to the end of its channel's terms, which is where the next one's begin.
    for (i64 row = 0; row < rows; ++row)
      for (i64 i = 0; exists(row) && i < each; ++i) {
        const i64 to = at[index[row]]++;
        source[to] = (i * groups + row / (width / part)) * kSub<A>;
        weight[to] = to_acc(w[row * each + i]);
      }
    for (i64 c = width; c > 0; --c) at[c] = at[c - 1];
    at[0] = first;
  }

  // A piece of an image, as Third::unit numbers them.
  void unit(i64 l, i64 u) {
    const i64 segment = u % layers.segments, path = u / layers.segments / b.p.n, n = u / layers.segments % b.p.n;
    const i64 from = segment * layers.panel, count = smaller(layers.panel, b.pixels - from), kappa = b.p.kappa;
    const T* const hidden = layers.prefix(n, b.partner(l, path)) + b.width(l) * b.pixels + from;
    const i64* const at = begins(l, path);
    pack_active<T, false>(hidden, b.pixels, nullptr, kappa, count, norm.from(block(l, path) * kappa), {}, 0, inputs);
    for (i64 i = 0; i < count; i += kSub<A>)
      for (i64 c = 0; c < b.width(l); ++c)
        if (at[c] < at[c + 1])
          add(at[c], at[c + 1], inputs + i * kappa, layers.prefix(n, path) + c * b.pixels + from + i, count - i);
  }
  void add(i64 term, i64 end, const A* panel, T* x, i64 left) {
    Vec<A> acc[kRun<A>] = {};
    for (; term < end; ++term) {
      const Vec<A> w = every(weight[term]);
      const A* const a = panel + source[term];
#pragma GCC unroll 4
      for (int v = 0; v < kRun<A>; ++v) acc[v] = vfma(vload(a + v * V), w, acc[v]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < kRun<A>; ++v)
      store_line<T>(x + v * V, load_line(x + v * V, left - v * V) + acc[v], left - v * V);
  }
};

}  // namespace mldn
}  // namespace
