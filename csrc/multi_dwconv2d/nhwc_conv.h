// NHWC forward and input gradient: one engine, since both are sums over taps of staged rows.
#pragma once
#include "multi_dwconv2d/nhwc_stage.h"

namespace {
namespace nhwc {

constexpr double kTeamGrain = 400e3;  // multiply-adds below which a team of threads costs more than it saves

// How the work is cut: a unit is one channel block of one strip of rows of one image.
struct Cut {
  i64 blocks, strips;
};

template <class T>
struct Conv {
  using A = Acc<T>;
  static constexpr int V = kLanes<A>;
  const Params& p;
  const Plan& g;
  const Ring<A>& r;
  const T *src, *w, *bias;
  T* dst;
  Stage<T> stage;
  A *packed, *row;
  RunAt<A>* active;
  char* ready;

  i64 block_channels() const { return static_cast<i64>(r.vecs) * V; }
  i64 packed_elements() const { return static_cast<i64>(r.vecs) * g.slots * V; }
  void take(Arena& a, i64 chunk) {
    int most = 0;
    for (int k = 0; k < g.passes; ++k) most = imax(most, g.pass[k].runs);
    stage.take(a);
    active = a.take<RunAt<A>>(most);
    row = a.take<A>(r.panel * V);
    ready = a.take<char>(chunk);
    packed = a.take<A>(chunk * packed_elements());
  }

  // [vector][slot][V], zero in lanes past the last channel.
  void pack(i64 c0, A* to) const {
    for (int v = 0; v < r.vecs; ++v, c0 += V, to += g.slots * V) {
      const int n = imin(V, g.channels - c0);
      for (int k = 0; k < g.slots; ++k) vstore(to + k * V, Vec<A>{});
      for (int k = 0; k < g.passes; ++k) {
        const Pass& s = g.pass[k];
        if (bias)
          for (int l = 0; l < n; ++l) to[s.slot * V + l] = to_acc(bias[s.channel + c0 + l]);
        for (int t = s.term; t < s.term + s.terms; ++t) {
          const Term& e = g.term[t];
          const Branch& b = p.branches[e.branch];
          const i64 kk = b.kernel * b.kernel;
          const T* from = w + b.weight_start + c0 * kk + e.cell;
          for (int l = 0; l < n; ++l) to[e.slot * V + l] += to_acc(from[l * kk]);
        }
      }
    }
  }

  void grid_row(const Pass& s, i64 i, i64 j0, i64 c0, i64 channels, const A* weights, T* image) {
    const i64 y = i * g.out_step_h + s.row0;
    if (y >= g.out_h) return;
    i64 n = (g.out_w - s.col0 + g.out_step_w - 1) / g.out_step_w - j0;
    if (n > r.panel) n = r.panel;
    if (n <= 0) return;
    int count[kRunKinds] = {}, m = 0;
    for (int k = s.run; k < s.run + s.runs; ++k) {
      const Run& t = g.run[k];
      const i64 line = i * g.in_step_h + t.dr;
      if (line < 0 || line >= g.in_h) continue;
      active[m++] = {stage.at(t.plane, t.row) + t.x, weights + t.w};
      ++count[t.kind];
    }
    T* to = image + y * g.out.h + (j0 * g.out_step_w + s.col0) * g.out.w + s.channel + c0;
    const i64 step = g.out.w * g.out_step_w;
    for (i64 v = 0; v * V < channels; ++v, to += V) {
      const A* own = weights + v * g.slots * V;
      const int left = imin(channels - v * V, V);
      if constexpr (sizeof(T) == sizeof(A)) {
        if (left == V) {
          conv_row<A>({active, count, own + s.slot * V, v * g.slots * V, step}, v * r.vec, to, n);
          continue;
        }
      }
      conv_row<A>({active, count, own + s.slot * V, v * g.slots * V, V}, v * r.vec, row, n);
      if (left == V)
        for (i64 j = 0; j < n; ++j) vstore(to + j * step, vload(row + j * V));
      else
        for (i64 j = 0; j < n; ++j) vstore(to + j * step, vload(row + j * V), left);
    }
  }

  void unit(const T* from, T* to, i64 c0, i64 i0, i64 i1, const A* weights) {
    i64 channels = g.channels - c0;
    if (channels > block_channels()) channels = block_channels();
    for (i64 j0 = 0; j0 < g.cols; j0 += r.panel) {
      stage.start(i0);
      for (i64 i = i0; i < i1; ++i, stage.advance()) {
        stage.fill(from + c0, i, j0, channels);
        for (int k = 0; k < g.passes; ++k) grid_row(g.pass[k], i, j0, c0, channels, weights, to);
      }
    }
  }

  // Units [from, to) of blocks [b0, b1); the blocks of an image follow each other, so that it stays in cache.
  void work(const Cut& cut, i64 b0, i64 b1, i64 from, i64 to) {
    for (i64 b = b0; b < b1; ++b) ready[b - b0] = 0;
    for (i64 u = from; u < to; ++u) {
      const i64 strip = u % cut.strips, b = u / cut.strips % (b1 - b0), n = u / cut.strips / (b1 - b0);
      const i64 c0 = (b0 + b) * block_channels(), i0 = strip * g.rows / cut.strips;
      A* weights = packed + b * packed_elements();
      if (!ready[b]) pack(c0, weights);
      ready[b] = 1;
      unit(src + n * g.in.n, dst + n * g.out.n, c0, i0, (strip + 1) * g.rows / cut.strips, weights);
    }
  }
};

// False: nothing was computed, the case does not fit the scratch.
template <class T>
bool conv_group(const Params& p, bool backward, int first, int branches, const T* src, const T* w, const T* bias,
                T* dst) {
  using A = Acc<T>;
  Plan g = outline(p, backward, first, branches);
  const double products = static_cast<double>(p.n) * g.channels * p.ho * p.wo * g.slots;
  const int threads = products < kTeamGrain ? 1 : p.threads;
  Arena sizes{nullptr, 0};
  take_plan(g, sizes);
  char* memory = static_cast<char*>(scratch(sizes.used + threads * kThreadBytes));
  if (!memory) return false;
  Arena plan{memory, 0};
  take_plan(g, plan);
  build(p, g, kLongestRun);

  const int vecs = imin(kBlockVecs<T>, (g.channels + kLanes<A> - 1) / kLanes<A>);
  const Ring<A> r = fit_ring<A>(g, vecs);
  Cut cut;
  cut.blocks = (g.channels + vecs * kLanes<A> - 1) / (vecs * kLanes<A>);
  cut.strips = 1;
  Conv<T> c{p, g, r, src, w, bias, dst, {g, r, nullptr, nullptr, nullptr, nullptr}, nullptr, nullptr, nullptr, nullptr};
  Arena fixed{nullptr, 0};
  c.take(fixed, 0);
  const i64 block_bytes = c.packed_elements() * static_cast<i64>(sizeof(A)) + 64;
  const i64 room = static_cast<i64>(kThreadBytes) - static_cast<i64>(fixed.used) - 128;
  if (room < block_bytes) return false;
  i64 chunk = room / block_bytes;
  if (chunk > cut.blocks) chunk = cut.blocks;
  for (i64 b0 = 0; b0 < cut.blocks; b0 += chunk) {
    const i64 b1 = b0 + chunk < cut.blocks ? b0 + chunk : cut.blocks, whole = p.n * (b1 - b0);
    // Rows are cut only where images and blocks alone would leave a thread without its share.
    cut.strips = whole % threads && whole < 4 * threads ? (g.rows < 4 * threads ? g.rows : 4 * threads) : 1;
    const i64 units = whole * cut.strips;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int t = 0; t < threads; ++t) {
      Arena own{memory + plan.used + t * kThreadBytes, 0};
      Conv<T> mine = c;
      mine.take(own, chunk);
      mine.work(cut, b0, b1, units * t / threads, units * (t + 1) / threads);
    }
  }
  return true;
}

}  // namespace nhwc
}  // namespace
