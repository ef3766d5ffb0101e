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
    lines = a.take<const A*>(line_count());
    streams = a.take<Stream>(r.rows * (g.in_step_h * g.in_step_w + 1));
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
    int blocks_of_pass = 0;
    for (int k = 0; k < kRunKinds; ++k) blocks_of_pass += (s.count[k] + kMostRuns[k] - 1) / kMostRuns[k];
    const int slots = blocks_of_pass * count * kBlockVecs<T>;
    h.rate = slots ? (4 + slots - 1) / slots : 0;
    return h;
  }

  void pass_rows(const T* xi, const T* gi, const Pass& s, i64 i, i64 j0, int count, i64 n, i64 channels) {
    Ahead h{};
    for (i64 v = 0; v * V < channels; ++v) {
      if (v % kBlockVecs<T> == 0) h = ahead(xi + v * V, gi + v * V, s, i, j0, count, n);
      A* own = sums + v * g.slots * V;
      for (int e = s.run; e < s.run + s.runs;) {
        const int kind = g.run[e].kind;
        int same = 1;
        while (e + same < s.run + s.runs && g.run[e + same].kind == kind) ++same;
        int blocks_left = (same + kMostRuns[kind] - 1) / kMostRuns[kind];
        for (; same > 0; --blocks_left) {
          const int runs = (same + blocks_left - 1) / blocks_left;
          int row[8];
          i64 at[8];
          A* sum[8];
          i64 lo = count, hi = 0;
          for (int b = 0; b < runs; ++b) {
            const Run& t = g.run[e + b];
            row[b] = t.row;
            at[b] = t.x;
            sum[b] = own + t.w;
            // Grid rows i + d whose tap lies in the image: 0 <= (i + d) * step + dr < height.
            const i64 step = g.in_step_h, first = -t.dr - i * step, end = g.in_h - t.dr - i * step;
            const i64 a = first > 0 ? (first + step - 1) / step : 0, z = end > 0 ? (end + step - 1) / step : 0;
            if (a < lo) lo = a;
            if (z > hi) hi = z;
          }
          if (hi > count) hi = count;
          if (lo < hi)
            gather_block<A>(kind, runs,
                            {lines, row, at, sum, rows + v * r.panel * V, v * r.vec, grad_row(), g.in_step_h,
                             static_cast<int>(lo), static_cast<int>(hi), n},
                            h);
          e += runs;
          same -= runs;
        }
      }
    }
  }

  // Grid rows [i0, i1) of one image, block of channels from c0.
  void image(i64 n, i64 c0, i64 i0, i64 i1, A* part, i64* pixels) {
    i64 channels = g.channels - c0;
    if (channels > block_channels()) channels = block_channels();
    const T* xi = x + n * g.in.n + c0;
    const T* gi = grad + n * g.out.n + c0;
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
          for (int d = 0; d < count; ++d)
            copy_pixels<T>(gi + s.channel + (i + d) * g.out.h + j0 * g.out.w, g.out.w, rows + d * grad_row(),
                           r.panel * V, cols, channels);
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
  const int blocks = (lines + kGatherLines - 1) / kGatherLines;
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
  const Ring<A> r = rows_ring<T>(g, vecs);
  const Stage<T> stage{g, r, nullptr, nullptr, nullptr, nullptr};
  const WeightGrad<T> w{p,      g,     r,       grad,    x,       gw,      all,     blocks,
                        groups, stage, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
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
