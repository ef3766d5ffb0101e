// NHWC weight gradient. The sum is taken in three fixed steps: some rows in registers, about kFlush pixels in a
// thread's sums, those in one part for each group of images; then the parts in order. Groups follow from the shape
// alone, so that the result does not depend on the number of threads.
#pragma once
#include "multi_dwconv2d/nhwc_gather.h"
#include "multi_dwconv2d/nhwc_stage.h"

namespace {
namespace nhwc {

constexpr i64 kFlush = 1024;
constexpr int kGatherLines = 8;   // cache lines of channels in a block
constexpr int kGatherUnits = 32;  // pieces of work wanted
constexpr i64 kPartBytes = 2 << 20;

// Runs of one kind whose sums are in registers together, and the staged grid rows that meet the image in any of them.
struct Block {
  int kind, run, runs, from, to;
};

template <class T>
struct WeightGrad {
  using A = Acc<T>;
  static constexpr int V = kLanes<A>;
  const Params& p;
  const Plan& g;
  const Ring<A>& r;
  const T *grad, *x;
  T* gw;
  A* parts;  // [block][group][vector][slot][V]
  i64 blocks, groups;
  Stage<T> stage;
  A *sums, *rows, *zeros, *cells;
  const A** lines;
  Block* block;  // of the current pass
  int pass_blocks;
  Stream* streams;

  i64 block_channels() const { return static_cast<i64>(r.vecs) * V; }
  i64 block_sums() const { return static_cast<i64>(r.vecs) * g.slots * V; }
  i64 grad_row() const { return r.vecs * r.panel * V; }
  int line_count() const { return g.plane[0].ring; }
  void take(Arena& a) {
    i64 taps = 0;
    for (int m = g.first; m < g.first + g.branches; ++m) taps += p.branches[m].kernel * p.branches[m].kernel;
    stage.take(a);
    sums = a.take<A>(block_sums());
    rows = a.take<A>(r.rows * grad_row());
    zeros = a.take<A>(r.row);
    cells = a.take<A>(taps * V);
    block = a.take<Block>(g.runs);
    lines = a.take<const A*>(line_count());
    streams = a.take<Stream>(g.planar ? 2 * block_channels() : r.rows * (g.in_step_h * g.in_step_w + 1));
  }

  void clear(A* to, i64 n) const {
    for (i64 i = 0; i < n; i += V) vstore(to + i, Vec<A>{});
  }
  void flush(A* part) {
    for (i64 i = 0; i < block_sums(); i += V) vstore(part + i, vload(part + i) + vload(sums + i));
    clear(sums, block_sums());
  }

  // Rows of this pass's gradient, and with the first pass of x, that the next rows will stage; past the image, the
  // next image's.
  Ahead ahead(const T* xi, const T* gi, const Pass& s, i64 i, i64 j0, int count, i64 n) {
    Ahead h{streams, 0, 0, 0, n};
    const auto add = [&](const T* image, const Strides& t, i64 row, i64 height, i64 column, i64 step) {
      if (row < 0 || row >= 2 * height) return;
      const T* at = image + (row < height ? row * t.h : t.n + (row - height) * t.h) + column * t.w;
      streams[h.streams++] = {reinterpret_cast<const char*>(at), step * t.w * static_cast<i64>(sizeof(T))};
    };
    for (i64 d = 0; d < count; ++d) add(gi + s.channel, g.out, i + count + d, g.out_h, j0, 1);
    if (&s == g.pass)
      for (i64 d = 0; d < count * g.in_step_h; ++d)
        for (i64 c = 0; c < g.in_step_w; ++c)
          add(xi, g.in, (i + count - 1) * g.in_step_h + g.plane[0].hi + 1 + d, g.in_h, j0 * g.in_step_w + c,
              g.in_step_w);
    h.rate = 1;
    return h;
  }

  // Lines of the planes that are transposed next: this block's for the next pass, or the next rows'.
  Ahead planes_ahead(const T* xi, const T* gi, const Pass& s, i64 i, int count, i64 channels) {
    Ahead h{streams, 0, 1, 0, (r.rows * g.cols * static_cast<i64>(sizeof(T)) + 63) / 64};
    const auto add = [&](const T* at, i64 plane) {
      for (i64 c = 0; c < channels; ++c) streams[h.streams++] = {reinterpret_cast<const char*>(at + c * plane), 64};
    };
    const bool turn = i + count >= g.rows, last = &s + 1 == g.pass + g.passes;
    if (!last) {
      add(gi + (&s + 1)->channel * g.out.c + i * g.out.h, g.out.c);
      return h;
    }
    add(gi + g.pass->channel * g.out.c + (turn ? g.out.n : (i + count) * g.out.h), g.out.c);
    const i64 row = i + count + g.plane[0].hi;
    if (turn || row < g.in_h) add(xi + (turn ? g.in.n : row * g.in.h), g.in.c);
    return h;
  }

  // Grid rows i + d, 0 <= d < count, whose tap in this kernel row lies in the image: 0 <= (i + d) * step + dr < height.
  void rows_of(const Run& t, i64 i, int count, int* from, int* to) const {
    int lo = 0, hi = count;
    while (lo < hi && (i + lo) * g.in_step_h + t.dr < 0) ++lo;
    while (hi > lo && (i + hi - 1) * g.in_step_h + t.dr >= g.in_h) --hi;
    *from = lo, *to = hi;
  }

  void cut_blocks(const Pass& s, i64 i, int count) {
    pass_blocks = 0;
    int e = s.run;
    for (int kind = 0; kind < kRunKinds; ++kind) {
      int left = s.count[kind], pieces = (left + kMostRuns[kind] - 1) / kMostRuns[kind];
      for (; left > 0; --pieces) {
        Block b{kind, e, (left + pieces - 1) / pieces, count, 0};
        for (int k = 0; k < b.runs; ++k) {
          int from, to;
          rows_of(g.run[e + k], i, count, &from, &to);
          if (from == to) continue;
          b.from = imin(b.from, from);
          b.to = imax(b.to, to);
        }
        e += b.runs;
        left -= b.runs;
        if (b.from < b.to) block[pass_blocks++] = b;
      }
    }
  }

  void pass_rows(const T* xi, const T* gi, const Pass& s, i64 i, i64 j0, int count, i64 n, i64 channels) {
    cut_blocks(s, i, count);
    Ahead h{};
    for (i64 v = 0; v * V < channels; ++v) {
      if (g.planar && v == 0) h = planes_ahead(xi, gi, s, i, count, channels);
      if (!g.planar && v % kBlockVecs<T> == 0) h = ahead(xi + v * V, gi + v * V, s, i, j0, count, n);
      for (int k = 0; k < pass_blocks; ++k) {
        const Block& b = block[k];
        gather_block<A>(b.kind, b.runs,
                        {lines, v * r.vec, g.in_step_h, g.run + b.run, sums + v * g.slots * V, rows + v * r.panel * V,
                         grad_row(), n, b.from, b.to},
                        h);
      }
    }
  }

  void read_gradient(const T* from, int count, i64 cols, i64 channels) {
    if constexpr (kTransposes<T>)
      if (g.planar) return read_planes<T>(from, g.out.c, count, cols, channels, rows, grad_row(), r.panel * V);
    for (int d = 0; d < count; ++d)
      copy_pixels<T>(from + d * g.out.h, g.out.w, rows + d * grad_row(), r.panel * V, cols, channels);
  }

  // Grid rows [i0, i1) of one image, block of channels from c0.
  void image(i64 n, i64 c0, i64 i0, i64 i1, A* part, i64* pixels) {
    i64 channels = g.channels - c0;
    if (channels > block_channels()) channels = block_channels();
    const T* xi = x + n * g.in.n + c0 * g.in.c;
    const T* gi = grad + n * g.out.n + c0 * g.out.c;
    for (i64 j0 = 0; j0 < g.cols; j0 += r.panel) {
      const i64 cols = g.cols - j0 < r.panel ? g.cols - j0 : r.panel;
      stage.start(i0);
      for (i64 i = i0; i < i1; i += r.rows, stage.advance(r.rows)) {
        const int count = imin(r.rows, i1 - i);
        stage.fill(xi, i + count - 1, j0, channels);
        for (int k = 0; k < line_count(); ++k) {
          const i64 row = i * g.in_step_h + g.plane[0].lo + k;
          lines[k] = row < 0 || row >= g.in_h ? zeros : stage.at(0, k);
        }
        for (int k = 0; k < g.passes; ++k) {
          const Pass& s = g.pass[k];
          read_gradient(gi + s.channel * g.out.c + i * g.out.h + j0 * g.out.w, count, cols, channels);
          pass_rows(xi, gi, s, i, j0, count, cols, channels);
        }
        *pixels += count * cols;
        if (*pixels >= kFlush) {
          flush(part);
          *pixels = 0;
        }
      }
    }
  }

  // Group q of the batch: whole images where there are enough, else rows.
  void unit(i64 block, i64 q) {
    A* part = parts + (block * groups + q) * block_sums();
    const i64 total = p.n * g.rows;
    i64 from = total * q / groups, to = total * (q + 1) / groups, pixels = 0;
    if (groups <= p.n) {
      from = p.n * q / groups * g.rows;
      to = p.n * (q + 1) / groups * g.rows;
    }
    clear(part, block_sums());
    clear(sums, block_sums());
    clear(zeros, r.row);
    while (from < to) {
      const i64 n = from / g.rows, end = (n + 1) * g.rows < to ? (n + 1) * g.rows : to;
      image(n, block * block_channels(), from - n * g.rows, end - n * g.rows, part, &pixels);
      from = end;
    }
    flush(part);
  }

  // Adds up the parts of one vector of channels and hands each branch its share.
  void finish(i64 block, int v) {
    const i64 c0 = block * block_channels() + v * V;
    const int lanes = imin(V, g.channels - c0);
    if (lanes <= 0) return;
    A* first = parts + block * groups * block_sums() + static_cast<i64>(v) * g.slots * V;
    for (i64 q = 1; q < groups; ++q)
      for (i64 k = 0; k < g.slots; ++k)
        vstore(first + k * V, vload(first + k * V) + vload(first + q * block_sums() + k * V));
    for (int m = g.first; m < g.first + g.branches; ++m) {
      const Branch& b = p.branches[m];
      const i64 taps = b.kernel * b.kernel;
      clear(cells, taps * V);
      for (int t = 0; t < g.terms; ++t) {
        const Term& e = g.term[t];
        if (e.branch == m)
          vstore(cells + e.cell * V, vload(cells + e.cell * V) + vload(first + static_cast<i64>(e.slot) * V));
      }
      T* to = gw + b.weight_start + c0 * taps;
      for (int l = 0; l < lanes; ++l)
        for (i64 k = 0; k < taps; ++k) to[l * taps + k] = from_acc<T>(cells[k * V + l]);
    }
  }
};

template <class T>
bool bwd_w_group(const Params& p, int first, int branches, const T* grad, const T* x, T* gw) {
  using A = Acc<T>;
  constexpr int V = kLanes<A>, line = kBlockVecs<T>;
  Plan g = outline(p, false, first, branches);
  const double products = static_cast<double>(p.n) * g.channels * p.ho * p.wo * g.slots;
  const int threads = products < kTeamGrain ? 1 : p.threads;
  const int need = static_cast<int>((g.channels + V - 1) / V), lines = (need + line - 1) / line;
  const int at_once = g.planar ? 1 : kGatherLines, blocks = (lines + at_once - 1) / at_once;
  const int vecs = imin(need, (lines + blocks - 1) / blocks * line);
  // Every group costs a part to fill and to add up, so small work is not cut.
  i64 groups = (kGatherUnits + blocks - 1) / blocks;
  const i64 worth = static_cast<i64>(products / blocks / kTeamGrain);
  if (groups > worth) groups = worth > 1 ? worth : 1;
  if (groups > p.n && groups > p.n * g.rows / 8) groups = p.n > p.n * g.rows / 8 ? p.n : p.n * g.rows / 8;
  const i64 a_group = static_cast<i64>(blocks) * vecs * g.slots * V, most = kPartBytes / (a_group * sizeof(A));
  if (groups > most) groups = most > 1 ? most : 1;
  const i64 parts = groups * a_group;

  Arena sizes{nullptr, 0};
  take_plan(g, sizes);
  sizes.take<A>(parts);
  char* memory = static_cast<char*>(scratch(sizes.used + threads * kThreadBytes));
  if (!memory) return false;
  Arena plan{memory, 0};
  take_plan(g, plan);
  A* all = plan.take<A>(parts);
  build(p, g, kLongestGather);
  const Ring<A> r = rows_ring<T>(g, vecs, rows_at_once(g));
  if (g.planar && r.panel < g.cols) return false;
  const Stage<T> stage{g, r, nullptr, nullptr, nullptr, nullptr, false};
  const WeightGrad<T> w{p,     g,       r,       grad,    x,       gw,      all,     blocks, groups,
                        stage, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, 0,      nullptr};
  WeightGrad<T> measure = w;
  Arena fixed{nullptr, 0};
  measure.take(fixed);
  if (fixed.used > kThreadBytes) return false;
  const i64 units = blocks * groups;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int t = 0; t < threads; ++t) {
      Arena own{memory + plan.used + t * kThreadBytes, 0};
      WeightGrad<T> mine = w;
      mine.take(own);
      mine.stage.prepare();
      for (i64 u = units * t / threads; u < units * (t + 1) / threads; ++u) mine.unit(u % blocks, u / blocks);
    }
#pragma omp for schedule(static)
    for (int t = 0; t < threads; ++t) {
      Arena own{memory + plan.used + t * kThreadBytes, 0};
      WeightGrad<T> mine = w;
      mine.take(own);
      const i64 all_vecs = static_cast<i64>(blocks) * vecs;
      for (i64 v = all_vecs * t / threads; v < all_vecs * (t + 1) / threads; ++v)
        mine.finish(v / vecs, static_cast<int>(v % vecs));
    }
  }
  return true;
}

}  // namespace nhwc
}  // namespace
