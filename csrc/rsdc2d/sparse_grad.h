// Weight gradient of small groups: pixels in the vector. Gradients are staged as long lines with zeros in the gaps.
#pragma once
#include "rsdc2d/sparse.h"
#include "rsdc2d/sparse_grad_tile.h"

namespace {
namespace rsdc {

constexpr i64 kParts = 16;  // units of work aimed at; shapes alone decide how sums are cut

template <class T>
struct SparseGrad {
  using A = Acc<T>;
  static constexpr int V = kLanes<A>, L = kSlimBytes / static_cast<int>(sizeof(A));
  const Plan& g;
  const T *grad, *x;
  T* gw;
  i64 bundle, bundles, parts;  // groups staged together; pieces that the batch is cut into
  i64 strip, flat;
  i64 lanes;  // of a sum: filters by themselves are summed in slim vectors
  Stage<T> stage;
  TermList list;
  A *totals, *grads, *sums, *part;  // sums: of a unit, a vector each
  Weight* weight;                   // of every set
  i64* count;

  SparseGrad(const Plan& plan, const T* gradient, const T* input, T* to)
      : g(plan),
        grad(gradient),
        x(input),
        gw(to),
        bundle(best_bundle(plan)),
        bundles(ceil_div(plan.p.groups, bundle)),
        parts(larger(1, smaller(plan.p.n, kParts / bundles))),
        strip(strip_rows(
            plan, bundle * (plan.planes() * plan.sources + plan.outputs) * plan.pitch() * static_cast<i64>(sizeof(A)),
            i64(1) << 30)),
        flat(flat_strip(plan, strip, plan.pitch(), V)),
        lanes(plan.one_set_a_group() && plan.outputs > 1 ? V : L),
        stage(plan, plan.sources * bundle, strip, false),
        totals(nullptr),
        grads(nullptr),
        sums(nullptr),
        part(nullptr),
        weight(nullptr),
        count(nullptr) {}

  static i64 best_bundle(const Plan& g) {
    if (g.p.layout == Layout::nchw) return 1;
    return smaller(g.p.groups, larger(ceil_div(kFlush, g.sources), ceil_div(kFlush, g.outputs)));
  }
  i64 filter() const { return g.sources * g.p.taps; }
  i64 total() const { return g.p.co * filter(); }
  i64 slack() const { return 2 * V + g.cols.gap; }
  void share(Arena& a) {
    list = make_terms(g, a, stage.plane, stage.row, 1);
    totals = a.take<A>(parts * total());
    weight = a.take<Weight>(g.p.sets * filter());
    count = a.take<i64>(g.p.sets);
  }
  void own(Arena& a) {
    stage.take(a, slack());
    grads = a.take<A>(bundle * g.outputs * flat);
    sums = a.take<A>(bundle * g.outputs * filter() * lanes);
    part = a.take<A>(16 * bundle * g.outputs);
  }

  void fill(const T* from, i64 outputs, i64 i0, i64 height, i64 ahead) {
    for (i64 i = 0; i < height; ++i) {
      const T* const line = from + (i0 + i) * g.dst.h;
      A* const to = grads + i * g.pitch();
      if (g.p.layout == Layout::nhwc)
        pixels_to_lines<T>(to, flat, line, g.dst.w, g.cols.grid, outputs, part);
      else
        for (i64 r = 0; r < outputs; ++r) {
          if (ahead) touch_rows(line + r * g.dst.c + ahead, 0, 0, 1, g.cols.grid * g.dst.w);
          read_line<T>(to + r * flat, line + r * g.dst.c, g.dst.w, g.cols.grid);
        }
    }
    const i64 end = (height - 1) * g.pitch() + g.cols.grid;
    for (i64 r = 0; r < outputs; ++r) clear(grads + r * flat + end, V);
  }

  void find_weights(i64 set) {
    Weight* to = weight + set * filter();
    for (i64 c = 0; c < g.sources; ++c)
      for (i64 e = 0; e < list.count[set]; ++e) {
        const Term& t = list.terms(set, 0)[e];
        *to++ = {t.at + c * stage.channel, c * g.p.taps + t.slot};
      }
    count[set] = g.sources * list.count[set];
  }

  void unit(i64 u) {
    const i64 q = u % parts, first = u / parts * bundle, groups = smaller(bundle, g.p.groups - first);
    const i64 outputs = groups * g.outputs;
    clear(sums, outputs * filter() * lanes);
    for (i64 n = q * g.p.n / parts; n < (q + 1) * g.p.n / parts; ++n)
      for (i64 i0 = 0; i0 < g.rows.grid; i0 += strip) {
        const i64 height = smaller(strip, g.rows.grid - i0);
        const bool more = strip == g.rows.grid && n + 1 < (q + 1) * g.p.n / parts;
        stage.fill(x + n * g.src.n + first * g.sources * g.src.c, groups * g.sources, i0, height, more ? g.src.n : 0);
        fill(grad + n * g.dst.n + first * g.outputs * g.dst.c, outputs, i0, height, more ? g.dst.n : 0);
        const RunSum<A> run{ceil_div((height - 1) * g.pitch() + g.cols.grid, V), flat, filter(), lanes};
        for (i64 k = 0; k < groups; ++k)
          for (i64 o = 0, n = 0; o < g.outputs; o += n) {
            const i64 set = g.set_of_channel(first + k, o), at = k * g.outputs + o, left = g.outputs - o;
            n = !g.one_set_a_group() || left == 1 ? 1 : left < 4 ? 2 : 4;
            run_sums<A>(run, n, weight + set * filter(), count[set], stage.data + k * g.sources * stage.channel,
                        grads + at * flat, sums + at * filter() * lanes);
          }
      }
    A* const to = totals + q * total() + first * g.outputs * filter();
    for (i64 e = 0; e < outputs * filter(); ++e)
      to[e] = lanes == L ? sum_lanes<A, L>(sums + e * L) : sum_lanes<A, V>(sums + e * V);
  }

  void work() {
#pragma omp for schedule(static)
    for (i64 set = 0; set < g.p.sets; ++set) find_weights(set);
    stage.prepare(slack());
    clear(grads, bundle * g.outputs * flat);
#pragma omp for schedule(static)
    for (i64 u = 0; u < bundles * parts; ++u) unit(u);
#pragma omp for schedule(static)
    for (i64 o = 0; o < g.p.co; ++o)
      for (i64 e = o * filter(); e < (o + 1) * filter(); ++e) {
        A sum = 0;
        for (i64 q = 0; q < parts; ++q) sum += totals[q * total() + e];
        gw[e] = from_acc<T>(sum);
      }
  }
};

template <class T>
int sparse_grad(const Params& p, const T* grad, const T* x, T* gw) {
  const Plan g = make_plan(p, false);
  SparseGrad<T> job(g, grad, x, gw);
  return run_job(job, p);
}

}  // namespace rsdc
}  // namespace
