// Small groups, and filters with taps of their own: pixels in the vector. Forward, and the input gradient as a
// convolution of the output's. A strip of a channel is one long line, whose gaps make outputs that nobody keeps.
#pragma once
#include "rsdc2d/dense.h"
#include "rsdc2d/sparse_tile.h"

namespace {
namespace rsdc {

constexpr i64 kFlush = 16;             // outputs that are written together, at least: a cache line of pixels
constexpr i64 kMadeBytes = 160 << 10;  // and at most, in the second-level cache

// Elements of a strip of lines that begin `row` apart. Padding wider than the window makes more outputs than that:
// lines then share what meets zeros alone, and the last goes beyond.
inline i64 flat_strip(const Plan& g, i64 strip, i64 row, i64 lanes) {
  return round_up((strip - 1) * row + larger(row, g.cols.grid), lanes) + lanes;
}

template <class T>
struct Sparse {
  using A = Acc<T>;
  static constexpr int V = kLanes<A>;
  const Plan& g;
  const T *src, *w, *bias;
  T* dst;
  i64 wide, blocks, block;       // outputs of a block, blocks of a group, elements of a block's weights
  i64 bundle, bundles;           // groups staged together
  bool by_rows;                  // whether vectors fill rows
  i64 strip, strips, row, flat;  // elements of a row, and of one output's strip
  i64 together;                  // outputs that are written together
  bool past;                     // the caches
  Stage<T> stage;
  TermList list;
  A *packed, *made, *part;

  static i64 best_wide(const Plan& g) {
    if (!g.backward && !g.one_set_a_group()) return 1;
    return g.outputs >= 4 ? 4 : g.outputs >= 2 ? 2 : 1;
  }
  static i64 best_bundle(const Plan& g) {
    if (g.p.layout == Layout::nchw || g.outputs >= kFlush) return 1;
    return smaller(g.p.groups, larger(ceil_div(kFlush, g.sources), ceil_div(kFlush, g.outputs)));
  }

  Sparse(const Plan& plan, const T* s, const T* weight, const T* b, T* d)
      : g(plan),
        src(s),
        w(weight),
        bias(b),
        dst(d),
        wide(best_wide(plan)),
        blocks(ceil_div(plan.outputs, wide)),
        block((plan.sources * plan.p.taps + 1) * wide),
        bundle(best_bundle(plan)),
        bundles(ceil_div(plan.p.groups, bundle)),
        by_rows(kByRows<A> && wide != 2 && plan.phases() == 1 && plan.cols.grid % V == 0),
        strip(strip_rows(plan, plan.planes() * plan.sources * bundle * plan.pitch() * static_cast<i64>(sizeof(A)),
                         plan.p.n * bundles)),
        strips(ceil_div(plan.rows.grid, strip)),
        row(by_rows ? plan.cols.grid : plan.pitch()),
        flat(flat_strip(plan, strip, row, V)),
        together(best_together(bundle * plan.outputs)),
        past(leaves_in_lines(plan, d) && plan.outputs * plan.p.groups >= kFlush &&
             (plan.p.layout == Layout::nhwc || (plan.cols.grid % kFlush == 0 && plan.dst.h % kFlush == 0))),
        stage(plan, plan.sources * bundle, strip, false),
        packed(nullptr),
        made(nullptr),
        part(nullptr) {}

  i64 best_together(i64 outputs) const {
    if (g.p.layout == Layout::nchw) return kFlush;
    const i64 most = smaller(outputs, kMadeBytes / (flat * static_cast<i64>(sizeof(A))));
    return larger(kFlush, most / kFlush * kFlush);
  }
  i64 slack() const { return 2 * V + g.cols.gap; }
  void share(Arena& a) {
    list = make_terms(g, a, stage.plane, stage.row, 1);
    packed = a.take<A>(g.p.groups * blocks * block);
  }
  void own(Arena& a) {
    stage.take(a, slack());
    made = a.take<A>((together + wide) * flat);
    part = a.take<A>(16 * (together + wide));
  }

  void pack(i64 b) {
    const i64 group = b / blocks, first = b % blocks * wide;
    A* to = packed + b * block;
    pack_weights<false>(g, w, group, first, wide, to);
    to += block - wide;
    for (i64 r = 0; r < wide; ++r)
      to[r] = bias && first + r < g.outputs ? to_acc(bias[group * g.outputs + first + r]) : A(0);
  }

  // Outputs of one strip, from channel c on, from `made` to where they belong.
  void flush(T* image, i64 c, i64 outputs, i64 f, i64 i0, i64 height) {
    const i64 fr = f / g.cols.phases(), fc = f % g.cols.phases(), columns = g.cols.places(fc);
    const i64 step = g.dst.w * g.cols.out_step();
    for (i64 i = 0; i < smaller(height, g.rows.places(fr) - i0); ++i) {
      T* to = image + c * g.dst.c + ((i0 + i) * g.rows.out_step() + fr) * g.dst.h + fc * g.dst.w;
      const A* from = made + i * row;
      const bool pixels = g.p.layout == Layout::nhwc;
      if constexpr (__is_same(T, float))
        if (past && (!pixels || (outputs % kFlush == 0 && c % kFlush == 0))) {
          if (pixels) {
            transpose_out<true>(to, step, from, flat, outputs, columns);
          } else {
            for (i64 r = 0; r < outputs; ++r) write_past(to + r * g.dst.c, from + r * flat, columns);
          }
          continue;
        }
      if (pixels)
        lines_to_pixels<T>(to, step, from, flat, columns, outputs, part);
      else
        for (i64 r = 0; r < outputs; ++r) write_line<T>(to + r * g.dst.c, step, from + r * flat, columns);
    }
  }

  // Blocks [b0, b1) of a bundle that begins with block `first`, one phase of them.
  void make(i64 first, i64 b0, i64 b1, i64 f, i64 height) {
    const i64 columns = g.cols.places(f % g.cols.phases()), runs = by_rows ? columns / V : 1;
    const i64 vectors = by_rows ? height : ceil_div((height - 1) * row + columns, V);
    SparseTile<A> tile{};
    tile.sources = g.sources;
    tile.channel = stage.channel;
    tile.slots = g.p.taps * wide;
    tile.pitch = flat;
    tile.step = by_rows ? g.pitch() : V;
    tile.out_step = by_rows ? row : V;
    const auto fn = [this](i64 n) {
      if constexpr (kByRows<A>)
        if (by_rows) return sparse_rows_fn<A>(wide, n);
      return sparse_fn<A>(wide, n);
    };
    A* to = made;
    for (i64 b = b0, end = b0; b < b1; b = end) {
      const i64 group = b / blocks;
      end = smaller(b1, (group + 1) * blocks);
      i64 outputs = 0;
      for (i64 run = 0; run < runs; ++run) {
        const A* x = stage.data + (group - first) * g.sources * stage.channel + run * V;
        i64 at = 0;
        for (i64 tiles = ceil_div(vectors, kRun[wide]); tiles > 0; --tiles) {
          const i64 n = ceil_div(vectors - at, tiles);
          outputs = 0;
          for (i64 e = b; e < end; ++e) {
            const i64 o = e % blocks * wide;
            tile.walk = list.walk(g.set_of_channel(group, g.backward ? 0 : o), f, !g.backward || g.one_set_a_group());
            tile.weights = packed + e * block;
            tile.init = tile.weights + block - wide;
            fn(n)(tile, x, to + outputs * flat + run * V + at * tile.out_step);
            outputs += smaller(wide, g.outputs - o);
          }
          at += n;
          x += n * tile.step;
        }
      }
      to += outputs * flat;
    }
  }

  void unit(i64 u) {
    const i64 first = u % bundles * bundle, i0 = u / bundles % strips * strip, n = u / bundles / strips;
    const i64 height = smaller(strip, g.rows.grid - i0), groups = smaller(bundle, g.p.groups - first);
    const i64 ahead = strips > 1                    ? 0
                      : first + groups < g.p.groups ? groups * g.sources * g.src.c
                      : n + 1 < g.p.n               ? g.src.n - first * g.sources * g.src.c
                                                    : 0;
    stage.fill(src + n * g.src.n + first * g.sources * g.src.c, groups * g.sources, i0, height, ahead);
    const i64 end = (first + groups) * blocks;
    for (i64 b0 = first * blocks, b1 = b0; b0 < end; b0 = b1) {
      i64 outputs = 0;
      for (; b1 < end && outputs < together; ++b1) outputs += smaller(wide, g.outputs - b1 % blocks * wide);
      const i64 channel = b0 / blocks * g.outputs + b0 % blocks * wide;
      for (i64 f = 0; f < g.phases(); ++f) {
        make(first, b0, b1, f, height);
        flush(dst + n * g.dst.n, channel, outputs, f, i0, height);
      }
    }
  }

  void work() {
#pragma omp for schedule(static)
    for (i64 b = 0; b < g.p.groups * blocks; ++b) pack(b);
    stage.prepare(slack());
#pragma omp for schedule(static)
    for (i64 u = 0; u < g.p.n * strips * bundles; ++u) unit(u);
    if (past) stream_fence();
  }
};

template <class T>
int sparse_conv(const Params& p, bool backward, const T* src, const T* w, const T* bias, T* dst) {
  const Plan g = make_plan(p, backward);
  Sparse<T> job(g, src, w, bias, dst);
  return run_job(job, p);
}

}  // namespace rsdc
}  // namespace
