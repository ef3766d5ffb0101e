// Weight gradient of one channel a group: planes of gradients times planes of inputs, a vector of sums each tap.
#pragma once
#include "rsdc2d/planes.h"
#include "rsdc2d/sparse_grad.h"

namespace {
namespace rsdc {

// Sums are formed over a strip of a plane, over the strips of a part of the batch, and over those parts: an order that
// depends on shapes alone.
template <class T>
struct PlaneGrad {
  using A = Acc<T>;
  static constexpr i64 V = kLanes<A>;
  static constexpr bool kSame = sizeof(T) == sizeof(A);
  const Plan& g;
  const T *grad, *x;
  T* gw;
  i64 parts;             // pieces that the batch is cut into
  i64 strip, row, flat;  // row: elements of a staged row of gradients; flat: of a channel's
  bool direct;           // gradients are read where they are
  bool in_place;         // inputs too
  PlaneStage<T> stage;
  UnitList list;
  A *totals, *grads, *sums, *long_sums;

  PlaneGrad(const Plan& plan, const T* gradient, const T* input, T* to)
      : g(plan),
        grad(gradient),
        x(input),
        gw(to),
        parts(larger(1, smaller(plan.p.n, kParts / plan.p.co))),
        strip(Planes<T>::tall_strip(plan)),
        row(round_up(plan.cols.grid, V)),
        flat((strip + kTall) * row),
        direct(kSame && plan.dst.w == 1 && plan.cols.grid % V == 0 && plan.rows.grid % kShort == 0 &&
               strip % kShort == 0),
        in_place(reads_in_place<T>(plan)),
        stage(plan, strip),
        list{},
        totals(nullptr),
        grads(nullptr),
        sums(nullptr),
        long_sums(nullptr) {}

  i64 total() const { return g.p.co * g.p.taps; }
  void share(Arena& a) {
    list = take_units(g, a);
    totals = a.take<A>(parts * total());
  }
  void own(Arena& a) {
    stage.take(a);
    grads = a.take<A>(flat);
    sums = a.take<A>(g.p.taps * V);
    long_sums = a.take<A>(g.p.taps * V);
  }

  // Rows from i0 on. Those beyond, that tiles reach, are zero on both sides.
  void fill(i64 n, i64 c, i64 i0, i64 height) {
    stage.fill(x + n * g.src.n + c * g.src.c, 1, i0, height);
    const i64 over = round_up(height, kShort) - height, stale = smaller(over, strip - height);
    for (i64 q = 0; q < g.planes(); ++q)
      for (i64 i = 0; i < stale; ++i)
        clear(stage.data + q * stage.plane + (height + g.halo() + i) * stage.row, g.cols.plane);
    if (direct) return;
    const T* from = grad + n * g.dst.n + c * g.dst.c + i0 * g.dst.h;
    for (i64 i = 0; i < height; ++i, from += g.dst.h) read_line<T>(grads + i * row, from, g.dst.w, g.cols.grid);
    clear(grads + height * row, over * row);
  }

  void multiply(i64 c, const A* from, i64 from_row, const A* at, A* to, i64 height) {
    const i64 e = list.index(g.set_of_channel(c, 0), 0);
    const PlaneSums<A> t{list.begin(e), list.end(e), stage.row, from_row, to};
    for (i64 i = 0; i < height;) {
      const bool tall = height - i > kShort;
      for (i64 j = 0; j < g.cols.grid; j += V) {
        const A *const a = at + i * stage.row + j, *const b = from + i * from_row + j;
        tall ? plane_sums<A, kTall>(t, a, b) : plane_sums<A, kShort>(t, a, b);
      }
      i += tall ? kTall : kShort;
    }
  }

#if defined(__AVX512F__)
  // Images [n0, n1) of channel c, where they are. Some tiles ahead, cache lines are asked for.
  void direct_planes(i64 c, i64 n0, i64 n1) {
    const i64 e = list.index(g.set_of_channel(c, 0), 0), size = g.p.taps * V;
    const DirectTile d{list.begin(e), list.end(e), g.src.h,   g.dst.h,  nullptr, 0,
                       false,         g.rows.in,   g.cols.in, g.rows.lo};
    TileWalk t(g.rows.grid, g.cols.grid, kHighSums, kLow);
    for (i64 n = n0; n < n1;) {
      if (t.at_first()) clear(sums, size);
      const i64 i = t.top(), j = t.left(V), soon = smaller(n + 1, n1 - 1);
      const T *const from = grad + offset(g.dst, n, c, 0, 0), *const plane = x + offset(g.src, n, c, 0, 0);
      const T *const next = t.ahead(plane, x + offset(g.src, soon, c, 0, 0), g.src.h, g.rows.in),
                     *const next_from = t.ahead(from, grad + offset(g.dst, soon, c, 0, 0), g.dst.h, g.rows.grid);
      const T* const at = from + i * g.dst.h + j;
      t.height == kHighSums ? direct_sums<kHighSums>(d, plane, i, j, at, t.i - i, t.j - j, sums, next, next_from)
                            : direct_sums<kLow>(d, plane, i, j, at, t.i - i, t.j - j, sums, next, next_from);
      t.advance();
      n += t.at_first();
      if (t.at_first())
        for (i64 k = 0; k < size; k += V) vstore(long_sums + k, vload(long_sums + k) + vload(sums + k));
    }
  }
#endif

  void unit(i64 u) {
    const i64 q = u % parts, c = u / parts, size = g.p.taps * V;
    clear(long_sums, size);
    add(c, q * g.p.n / parts, (q + 1) * g.p.n / parts);
    A* const to = totals + q * total() + c * g.p.taps;
    for (i64 t = 0; t < g.p.taps; ++t) to[t] = sum_lanes<A, V>(long_sums + t * V);
  }
  void add(i64 c, i64 n0, i64 n1) {
    const i64 size = g.p.taps * V;
#if defined(__AVX512F__)
    if constexpr (__is_same(T, float))
      if (in_place) return direct_planes(c, n0, n1);
#endif
    for (i64 n = n0; n < n1; ++n)
      for (i64 i0 = 0; i0 < g.rows.grid; i0 += strip) {
        const i64 height = smaller(strip, g.rows.grid - i0);
        fill(n, c, i0, height);
        clear(sums, size);
        const A* from = grads;
        i64 from_row = row;
        if constexpr (kSame)
          if (direct) from = grad + offset(g.dst, n, c, i0, 0), from_row = g.dst.h;
        multiply(c, from, from_row, stage.data, sums, height);
        for (i64 i = 0; i < size; i += V) vstore(long_sums + i, vload(long_sums + i) + vload(sums + i));
      }
  }

  // Sums of channel c, in the units' order, to its weights.
  void finish(i64 c) {
    const i64 e = list.index(g.set_of_channel(c, 0), 0);
    T* const to = gw + c * g.p.taps;
    for (i64 t = 0; t < g.p.taps; ++t) to[t] = from_acc<T>(0);
    for (const Unit *u = list.begin(e), *end = list.end(e); u != end; ++u)
      for (i64 i = u->first; i < u->first + taps_of(u->kind); ++i) {
        A sum = 0;
        for (i64 q = 0; q < parts; ++q) sum += totals[q * total() + c * g.p.taps + i];
        to[list.slot[e * g.p.taps + i]] = from_acc<T>(sum);
      }
  }

  void work() {
    find_units(g, list, stage.plane, in_place ? g.src.h : stage.row, false);
    stage.prepare(stage.data);
    clear(grads, flat);
#pragma omp for schedule(static)
    for (i64 u = 0; u < g.p.co * parts; ++u) unit(u);
#pragma omp for schedule(static)
    for (i64 c = 0; c < g.p.co; ++c) finish(c);
  }
};

template <class T>
int planes_grad(const Params& p, const T* grad, const T* x, T* gw) {
  const Plan g = make_plan(p, false);
  PlaneGrad<T> job(g, grad, x, gw);
  return run_job(job, p);
}

}  // namespace rsdc
}  // namespace
