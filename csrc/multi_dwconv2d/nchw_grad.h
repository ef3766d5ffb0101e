// NCHW weight gradient: one vector of sums a tap, added up over planes, its lanes added up last.
#pragma once
#include "multi_dwconv2d/nchw_conv.h"

namespace {
namespace nchw {

// Sums lie a full vector apart, whichever width is in use.
template <class A>
constexpr i64 kSlot = kLanes<A>;

template <int From, int To, int KH, int D, int TH, int S, class V, class M, class A>
LK_HOT void grad_rows(V (&a)[S], const V (&g)[TH], const A* x, i64 pitch, M mask) {
#pragma GCC unroll 32
  for (int r = From; r < To; ++r) {
    V v = (V)((M)get<V>(x + r * pitch) & mask);
    LK_IN_REGISTER(v);
#pragma GCC unroll 8
    for (int u = 0; u < KH; ++u)
      if (r >= u * D && r - u * D < TH) a[KH == 1 ? r % S : u] += v * g[r - u * D];
  }
}

// A single row of taps has a chain of sums to itself; several keep the multiply-adds busy.
template <int KH, int D, int TH, class V, class M, class A>
LK_HOT void grad_part(const V (&g)[TH], const Part& p, const A* x, A* sums, i64 pitch, i64 i, M mask) {
  constexpr int R = KH / 2 * D, S = KH > 1 ? KH : TH < 4 ? TH : 4;
  const Edge e = edge<KH, D, TH>(p, i);
  if (e.none) return;
  const i64 row = p.wrow * kSlot<A>, col = p.wcol * kSlot<A>, step = p.step;
  for (i64 n = p.cols; n > 0; --n, x += step, sums += col) {
    V a[S];
#pragma GCC unroll 8
    for (int u = 0; u < S; ++u) a[u] = u < KH ? get<V>(sums + u * row) : V{};
    if (!e.top) grad_rows<0, R, KH, D>(a, g, x, pitch, mask);
    grad_rows<R, R + TH, KH, D>(a, g, x, pitch, mask);
    if (!e.bottom) grad_rows<R + TH, TH + (KH - 1) * D, KH, D>(a, g, x, pitch, mask);
#pragma GCC unroll 8
    for (int u = KH; u < S; ++u) a[0] += a[u];
#pragma GCC unroll 8
    for (int u = 0; u < KH; ++u) put(sums + u * row, a[u]);
  }
}

template <class A>
struct GradTile {
  const Part* parts;
  i64 count;
  const A* x;  // scratch
  A* sums;
  i64 pitch;
  i64 i, offset;  // output row, and its distance from the region's first in scratch
  const A* g;     // first output row
  i64 g_row;
  i64 planes, x_plane, g_plane;  // images worked on together, and their distances in scratch and in g
};

template <int TH, class V, class M, class A>
void grad_parts(const GradTile<A>& t, const A* maps, const A* from, i64 at, M mask) {
  V g[TH];
#pragma GCC unroll 8
  for (int r = 0; r < TH; ++r) g[r] = (V)((M)get<V>(from + r * t.g_row + at) & mask);
  for (i64 n = 0; n < t.count; ++n) {
    const Part& p = t.parts[n];
    const A* x = maps + p.x + t.offset + at;
    A* sums = t.sums + p.w * kSlot<A>;
    switch (p.kind) {
      case k3:
        grad_part<3, 1>(g, p, x, sums, t.pitch, t.i, mask);
        break;
      case k5:
        grad_part<5, 1>(g, p, x, sums, t.pitch, t.i, mask);
        break;
      case k7:
        grad_part<7, 1>(g, p, x, sums, t.pitch, t.i, mask);
        break;
      case k3by2:
        grad_part<3, 2>(g, p, x, sums, t.pitch, t.i, mask);
        break;
      case k3by3:
        grad_part<3, 3>(g, p, x, sums, t.pitch, t.i, mask);
        break;
      case k5by2:
        if constexpr (kFiveByTwo<A>) grad_part<5, 2>(g, p, x, sums, t.pitch, t.i, mask);
        break;
      default:
        grad_part<1, 1>(g, p, x, sums, t.pitch, t.i, mask);
    }
  }
}

// Columns [j0, j1) of TH rows. Lanes of the last vector that are no columns of its own are masked on both sides: a
// product with zero would spread an infinity.
template <int TH, class V, class A>
void grad_tile(const GradTile<A>& t, i64 j0, i64 j1) {
  using M = decltype(V{} < V{});
  constexpr i64 L = lanes<V, A>;
  for (i64 j = j0; j < j1; j += L) {
    M mask = M{} - 1;
    i64 at = j;
    if (j + L > j1) {
      if (j1 >= L) at = j1 - L;
      for (i64 l = 0; l < L; ++l) mask[l] = at + l >= j && at + l < j1 ? -1 : 0;
    }
    for (i64 n = 0; n < t.planes; ++n) grad_parts<TH, V>(t, t.x + n * t.x_plane, t.g + n * t.g_plane, at, mask);
  }
}
template <int TH, class A>
void grad_columns(const GradTile<A>& t, i64 n) {
  using W = Vector<A, kWide>;
  using N = Vector<A, kNarrow>;
  if constexpr (kWide != kNarrow) {
    constexpr i64 LW = lanes<W, A>, LN = lanes<N, A>;
    const i64 rest = n % LW;
    if (rest && rest <= LN) {
      if (n > LW) grad_tile<TH, W>(t, 0, n - rest);
      return grad_tile<TH, N>(t, n > LW ? n - rest : 0, n);
    }
  }
  grad_tile<TH, W>(t, 0, n);
}

template <class A>
void grad_region(GradTile<A> t, i64 i0, i64 rows, i64 cols) {
  const A* const g = t.g;
  i64 sevens = sevens_of(rows);
  for (i64 i = 0; i < rows;) {
    const i64 left = rows - i;
    const i64 height = sevens > 0 ? 7 : left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    t.i = i0 + i;
    t.offset = i * t.pitch;
    t.g = g + i * t.g_row;
    switch (height) {
      case 8:
        grad_columns<8>(t, cols);
        break;
      case 7:
        grad_columns<7>(t, cols);
        --sevens;
        break;
      case 4:
        grad_columns<4>(t, cols);
        break;
      case 2:
        grad_columns<2>(t, cols);
        break;
      default:
        grad_columns<1>(t, cols);
    }
    i += height;
  }
}

constexpr i64 kChain = 256;     // products a lane adds up before its sum joins the total
constexpr i64 kGradUnits = 32;  // wanted units of work; from the shape alone, so that sums do not depend on threads

template <class T>
struct Grad {
  using A = Acc<T>;
  const Params& p;
  const Plan& plan;
  const Cut& cut;
  const T *x, *g;
  A* totals;   // [chunks][channels][plan.weights]
  i64 chunks;  // the images' regions, in order, fall into so many equal parts

  i64 items() const { return p.n * cut.row_cuts * cut.col_cuts; }
  i64 sums_size() const { return plan.weights * kSlot<A>; }
  i64 slots_size() const { return cut.batch * plan.sources.size * cut.frame.size; }
  i64 g_size() const { return cut.batch * cut.rows * cut.pitch + kSlot<A>; }
  i64 scratch_size() const { return static_cast<i64>(sizeof(A)) * (slots_size() + 2 * sums_size() + g_size()); }

  void run(i64 unit, A* memory, i64&) const {
    const i64 c = unit / chunks, chunk = unit % chunks, cuts = cut.row_cuts * cut.col_cuts;
    A* const sums = memory + slots_size();
    A* const total = sums + sums_size();
    clear(sums, 2 * sums_size());
    i64 chain = 0;
    const i64 end = items() * (chunk + 1) / chunks;
    for (i64 k = items() * chunk / chunks; k < end;) {
      const Region r = cut.region(k % cuts);
      const i64 images = cuts > 1 ? 1 : smaller(cut.batch, end - k);
      add(k / cuts, images, c, r, cuts == 1 && k + images < end, memory);
      k += images;
      chain += images * (r.i1 - r.i0) * ceil_div(r.j1 - r.j0, kSlot<A>);
      if (chain >= kChain) {
        for (i64 i = 0; i < sums_size(); ++i) total[i] += sums[i];
        clear(sums, sums_size());
        chain = 0;
      }
    }
    A* const to = totals + (chunk * p.c + c) * plan.weights;
    for (i64 w = 0; w < plan.weights; ++w) {
      A lane[kSlot<A>];
      for (i64 l = 0; l < kSlot<A>; ++l) lane[l] = total[w * kSlot<A> + l] + sums[w * kSlot<A> + l];
      for (i64 half = kSlot<A> / 2; half; half /= 2)
        for (i64 l = 0; l < half; ++l) lane[l] += lane[l + half];
      to[w] = lane[0];
    }
  }

  // The gradient's rows are read in place where that needs neither conversion nor padding.
  bool direct(const Map& m, i64 cols) const {
    constexpr i64 narrow = kNarrow / static_cast<i64>(sizeof(A)), wide = kWide / static_cast<i64>(sizeof(A));
    return sizeof(T) == sizeof(A) && m.first == m.last && (cols >= wide || cols == narrow);
  }

  // `more`: as many further images follow, and are better fetched while these are worked on.
  void add(i64 n0, i64 images, i64 c, const Region& r, bool more, A* memory) const {
    const i64 rows = r.i1 - r.i0, cols = r.j1 - r.j0, n1 = n0 + images;
    for (i64 n = n0; n < n1; ++n)
      for (i64 s = 0; s < plan.sources.size; ++s) {
        const Map& m = plan.sources[s];
        const T* plane = x + offset(p.x, n, c, m.row0, m.col0);
        const i64 row = p.x.h * p.stride_h;
        stage(memory + ((n - n0) * plan.sources.size + s) * cut.frame.size, cut.frame, r, plane, row, p.stride_w, m.h,
              m.w);
        if (more && n + images < p.n) touch_rows(plane + images * p.x.n, m.h, row, m.w * p.stride_w);
      }
    Frame flat{};
    flat.pitch = cut.pitch;
    flat.zeros = true;
    A* const slots = memory + slots_size() + 2 * sums_size();
    for (i64 o = 0; o < plan.outputs.size; ++o) {
      const Map& m = plan.outputs[o];
      GradTile<A> t{};
      t.parts = plan.parts.data + plan.output_parts[o].first_part;
      t.count = plan.output_parts[o].parts;
      t.x = memory;
      t.sums = memory + slots_size();
      t.pitch = cut.frame.pitch;
      t.planes = images;
      t.x_plane = plan.sources.size * cut.frame.size;
      if (direct(m, cols)) {
        t.g = reinterpret_cast<const A*>(g + offset(p.y, n0, p.branches[m.first].out_start + c, r.i0, r.j0));
        t.g_row = p.y.h;
        t.g_plane = p.y.n;
      } else {
        t.g = slots;
        t.g_row = cut.pitch;
        t.g_plane = cut.rows * cut.pitch;
      }
      for (i64 n = n0; n < n1; ++n)
        for (i64 q = m.first; q <= m.last; ++q) {
          const T* plane = g + offset(p.y, n, p.branches[q].out_start + c, 0, 0);
          if (!direct(m, cols)) {
            A* const slot = slots + (n - n0) * t.g_plane;
            if (q == m.first)
              stage(slot, flat, r, plane, p.y.h, 1, m.h, m.w);
            else
              stage_more(slot, flat, r, plane, p.y.h, 1, m.h, m.w);
          }
          if (more && n + images < p.n) touch_rows(plane + images * p.y.n, rows, p.y.h, cols);
        }
      grad_region(t, r.i0, rows, cols);
    }
  }
};

template <class T>
void unpack(T* gw, const Plan& plan, const Params& p, const Acc<T>* totals, i64 chunks, i64 c) {
  for (i64 n = 0; n < plan.groups.size; ++n) {
    const Group& g = plan.groups[n];
    for (i64 m = g.first; m <= g.last; ++m) {
      const Branch& b = p.branches[m];
      if (b.dilation != g.dilation) continue;
      T* to = gw + b.weight_start + c * b.kernel * b.kernel;
      const i64 shift = (g.kernel - b.kernel) / 2;
      for (i64 u = 0; u < b.kernel; ++u)
        for (i64 v = 0; v < b.kernel; ++v) {
          const Acc<T>* from = totals + c * plan.weights + g.w + (u + shift) * g.kernel + v + shift;
          Acc<T> sum = 0;
          for (i64 k = 0; k < chunks; ++k) sum += from[k * p.c * plan.weights];
          to[u * b.kernel + v] = from_acc<T>(sum);
        }
    }
  }
}

template <class T>
int grad(const Params& p, const T* x, const T* g, const T*, T* gw) {
  Plan plan;
  if (!make_plan(plan, p, Pass::weight)) return out_of_memory;
  Params whole = p;
  whole.threads = 2;
  const bool shared = team(whole) > 1;
  const Cut cut = make_cut(plan, p, static_cast<i64>(sizeof(Acc<T>)), shared ? kGradUnits : 1);
  place(plan, cut.frame);
  Grad<T> job{p, plan, cut, x, g, nullptr, 1};
  if (shared) job.chunks = larger(1, smaller(job.items(), ceil_div(kGradUnits, p.c)));
  const std::size_t size = static_cast<std::size_t>(job.chunks * p.c * plan.weights) * sizeof(Acc<T>);
  job.totals = static_cast<Acc<T>*>(std::malloc(size));
  if (!job.totals) return out_of_memory;
  const int error = for_units(p.c * job.chunks, team(p), job);
  if (!error)
    for (i64 c = 0; c < p.c; ++c) unpack(gw, plan, p, job.totals, job.chunks, c);
  std::free(job.totals);
  return error;
}

template <class T>
int bwd_w(const Params& p, const T* g, const T* x, T* gw) {
  if (p.n * p.c * p.ho * p.wo == 0) {
    for (i64 m = 0; m < p.num_branches; ++m) {
      const Branch& b = p.branches[m];
      for (i64 i = 0; i < b.channels * b.kernel * b.kernel; ++i) gw[b.weight_start + i] = from_acc<T>(0);
    }
    return ok;
  }
  return each_branch<T>(p, grad<T>, x, g, nullptr, gw, false);
}

}  // namespace nchw
}  // namespace
