// Dense groups, output channels in the vector: forward, and the input gradient as a convolution of the output's.
#pragma once
#include "rsdc2d/dense_tile.h"

namespace {
namespace rsdc {

constexpr i64 kStripBytes = 256 << 10;  // of staged input, to stay in the second-level cache
constexpr i64 kLineBytes = 24 << 10;    // of a block's outputs before they go to their maps
constexpr i64 kPastBytes = 2 << 20;     // outputs from this size on bypass the caches

// Grid rows of a strip: what the cache holds, cut further where threads would be idle.
inline i64 strip_rows(const Plan& g, i64 row_bytes, i64 units) {
  i64 rows = larger(1, kStripBytes / larger(1, row_bytes) - g.halo());
  if (rows < g.halo()) rows = smaller(g.halo(), 8);
  const i64 threads = parallel(g.p) ? g.p.threads : 1;
  if (units < 2 * threads) rows = smaller(rows, ceil_div(g.rows.grid * units, 2 * threads));
  rows = larger(1, smaller(rows, g.rows.grid));
  return ceil_div(g.rows.grid, ceil_div(g.rows.grid, rows));
}

// Whether the outputs are so many that they should bypass the caches, and pixels (NHWC) or maps (NCHW) whole lines.
template <class T>
bool leaves_in_lines(const Plan& g, const T* dst) {
  constexpr i64 line = 16;
  const Strides& s = g.dst;
  if (!__is_same(T, float) || g.phases() > 1 || g.p.n * s.n * 4 < kPastBytes) return false;
  if (reinterpret_cast<std::uintptr_t>(dst) % 64 || s.n % line) return false;
  return g.p.layout == Layout::nhwc ? s.w % line == 0 && s.h % line == 0 : s.c % line == 0;
}

template <class T, bool Pairs>
struct Dense {
  using A = Acc<T>;
  static constexpr int V = kLanes<A>;
  const Plan& g;
  const T *src, *w, *bias;
  T* dst;
  i64 wide, blocks, channels;  // outputs of a block; staged channels
  i64 strip, strips, block;    // elements of a block's weights
  i64 waiting;                 // rows of a block's outputs kept until they are written
  bool past;                   // the caches
  Stage<T, Pairs> stage;
  TermList list;
  A* packed;
  A *line, *turned;  // rows of a block's outputs
  Term* term;        // of a row at the edge
  i64* count;

  static i64 best_wide(i64 outputs) {
    if (Pairs) return kVectors * V;
    return outputs % (kVectors * V) == 0 || outputs > 2 * kVectors * V ? kVectors * V : outputs <= V ? V : kVectors * V;
  }

  Dense(const Plan& plan, const T* s, const T* weight, const T* b, T* d)
      : g(plan),
        src(s),
        w(weight),
        bias(b),
        dst(d),
        wide(best_wide(plan.outputs)),
        blocks(ceil_div(plan.outputs, wide)),
        channels(paired(Pairs, plan.sources)),
        strip(strip_rows(plan, plan.planes() * channels * plan.pitch() * static_cast<i64>(sizeof(A)),
                         plan.p.n * plan.p.groups)),
        strips(ceil_div(plan.rows.grid, strip)),
        block((channels * plan.p.taps + 1) * wide),
        waiting(larger(1, smaller(strip, kLineBytes / (plan.cols.grid * wide * static_cast<i64>(sizeof(A)))))),
        past(leaves_in_lines(plan, d)),
        stage(plan, channels, strip, true),
        packed(nullptr),
        line(nullptr),
        turned(nullptr),
        term(nullptr),
        count(nullptr) {
    if (plan.p.layout == Layout::nhwc) {
      past = past && (plan.outputs % 16 == 0 || plan.p.groups == 1);
      return;
    }
    i64 rows = 1;  // that are whole lines
    while (rows * plan.cols.grid % 16) rows *= 2;
    past = past && plan.dst.h == plan.cols.grid && strip % rows == 0 && rows <= waiting;
    if (past) waiting = waiting / rows * rows;
  }

  i64 slack() const { return kPixels; }
  void share(Arena& a) {
    list = make_terms(g, a, stage.plane, stage.row, 1);
    packed = a.take<A>(g.p.groups * blocks * block);
  }
  void own(Arena& a) {
    stage.take(a, slack());
    line = a.take<A>(waiting * g.cols.grid * wide);
    turned = a.take<A>(waiting * g.cols.grid * wide);
    term = a.take<Term>(g.sources * g.p.taps);
    count = a.take<i64>(g.sources);
  }

  // Weights of a block and, behind them, what its sums start from.
  void pack(i64 b) {
    const i64 group = b / blocks, first = b % blocks * wide;
    A* to = packed + b * block;
    pack_weights<Pairs>(g, w, group, first, wide, to);
    to += block - wide;
    for (i64 r = 0; r < wide; ++r)
      to[r] = bias && first + r < g.outputs ? to_acc(bias[group * g.outputs + first + r]) : A(0);
  }

  // Rows of n outputs that wait in `line`.
  void finish(T* to, i64 rows, i64 n, i64 outputs) {
    const i64 step = g.dst.w * g.cols.out_step(), down = g.dst.h * g.rows.out_step();
    if (g.p.layout == Layout::nhwc) {
      for (i64 i = 0; i < rows; ++i)
        for (i64 j = 0; j < n; ++j) write_line<T>(to + i * down + j * step, 1, line + (i * n + j) * wide, outputs);
      return;
    }
    if (step == 1 && down == n) {
      n *= rows;
      rows = 1;
    }
    for (i64 i = 0; i < rows; ++i, to += down) {
      const A* const from = line + i * n * wide;
      if constexpr (sizeof(T) == sizeof(A))
        if (step == 1) {
          if (past)
            transpose_out<true>(to, g.dst.c, from, wide, n, outputs);
          else
            transpose<T>(to, g.dst.c, from, wide, n, outputs);
          continue;
        }
      transpose(turned, n, from, wide, n, outputs);
      for (i64 r = 0; r < outputs; ++r) write_line<T>(to + r * g.dst.c, step, turned + r * n, n);
    }
  }

  void row(const DenseTile<A>& tile, const A* x, A* out, i64 n) const {
    const bool edges = g.planes() == 1 && g.phases() == 1;
    if constexpr (!Pairs)
      if (wide == V) return dense_row<A, 1, false>(tile, x, out, n, edges);
    dense_row<A, kVectors, Pairs>(tile, x, out, n, edges);
  }

  i64 units() const { return g.p.n * strips * g.p.groups; }
  // Where what a unit reads begins, but for its halo.
  i64 place(i64 u) const {
    const i64 group = u % g.p.groups, i0 = u / g.p.groups % strips * strip, n = u / g.p.groups / strips;
    return n * g.src.n + group * g.sources * g.src.c + i0 * g.rows.in_step() * g.src.h;
  }

  void unit(i64 u) {
    const i64 group = u % g.p.groups, i0 = u / g.p.groups % strips * strip, n = u / g.p.groups / strips;
    const i64 height = smaller(strip, g.rows.grid - i0);
    const i64 ahead = u + 1 < units() ? place(u + 1) - place(u) : 0;
    stage.fill(src + n * g.src.n + group * g.sources * g.src.c, g.sources, i0, height, ahead);
    const i64 set = g.set_of_channel(group, 0);
    for (i64 b = 0; b < blocks; ++b) {
      const A* const weights = packed + (group * blocks + b) * block;
      const i64 outputs = smaller(wide, g.outputs - b * wide);
      T* const map = dst + n * g.dst.n + (group * g.outputs + b * wide) * g.dst.c;
      for (i64 f = 0; f < g.phases(); ++f) {
        const i64 fr = f / g.cols.phases(), fc = f % g.cols.phases(), columns = g.cols.places(fc);
        const Walk walk = list.walk(set, f, g.one_set_a_group());
        DenseTile<A> tile{channels, stage.channel, g.p.taps * wide, walk, weights, weights + block - wide, wide};
        tile.after = static_cast<int>(g.cols.plane - columns);
        const i64 rows = smaller(height, g.rows.places(fr) - i0);
        for (i64 i = 0, kept = 0; i < rows; ++i) {
          tile.walk = near(g, walk, i0 + i, g.sources, term, count);
          T* to = map + ((i0 + i - kept) * g.rows.out_step() + fr) * g.dst.h + fc * g.dst.w;
          const A* x = stage.data + i * stage.row;
          if constexpr (sizeof(T) == sizeof(A))
            if (g.p.layout == Layout::nhwc && outputs == wide) {
              tile.step = g.dst.w * g.cols.out_step();
              tile.past = past;
              row(tile, x, to, columns);
              continue;
            }
          row(tile, x, line + kept * columns * wide, columns);
          if (++kept < waiting && i + 1 < rows) continue;
          finish(to, kept, columns, outputs);
          kept = 0;
        }
      }
    }
  }

  void work() {
#pragma omp for schedule(static)
    for (i64 b = 0; b < g.p.groups * blocks; ++b) pack(b);
    stage.prepare(slack());
#pragma omp for schedule(static)
    for (i64 u = 0; u < units(); ++u) unit(u);
    if (past) stream_fence();
  }
};

template <class T>
int dense_conv(const Params& p, bool backward, const T* src, const T* w, const T* bias, T* dst) {
  const Plan g = make_plan(p, backward);
  if constexpr (kPairs<T>)
    if (has_pairs() && g.one_set_a_group() && g.sources > 1) {
      Dense<T, true> job(g, src, w, bias, dst);
      return run_job(job, p);
    }
  Dense<T, false> job(g, src, w, bias, dst);
  return run_job(job, p);
}

}  // namespace rsdc
}  // namespace
