// NCHW, one channel a group: every plane has taps of its own, and a tile of its rows stays in registers. Forward, and
// the input gradient as a convolution of the output's.
#pragma once
#include "lk/lines.h"
#include "rsdc2d/dense.h"

namespace {
namespace rsdc {

constexpr i64 kPlaneBytes = 20 << 10;  // of a staged plane, to stay in the first-level cache
constexpr i64 kPastPlanes = 1 << 20;   // outputs from this size on bypass the caches
constexpr int kTall = 8;               // rows of a tile

#if defined(__AVX512F__)
constexpr int kAbreast = 2;  // vectors of a row of a tile
#else
constexpr int kAbreast = 1;
#endif

template <class A>
struct PlaneTile {
  const Term* term;
  i64 terms, row, out_row;
  const A* weights;
  A init;
};

template <class A, int N>
__attribute__((noinline)) void plane_tile(const PlaneTile<A>& a, const A* x, A* out) {
  using S = Slim<A>;
  constexpr int L = kSlimBytes / static_cast<int>(sizeof(A));
  S acc[kTall][N];
#pragma GCC unroll 8
  for (int r = 0; r < kTall; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < N; ++v) acc[r][v] = a.init - S{};
  const i64 row = a.row;
  for (const Term *t = a.term, *end = t + a.terms; t != end; ++t) {
    const A* from = x + t->at;
    const S k = a.weights[t->slot] - S{};
#pragma GCC unroll 8
    for (int r = 0; r < kTall; ++r, from += row)
#pragma GCC unroll 2
      for (int v = 0; v < N; ++v) {
        S in;
        __builtin_memcpy(&in, from + v * L, sizeof in);
        acc[r][v] = vfma(in, k, acc[r][v]);
      }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTall; ++r, out += a.out_row)
#pragma GCC unroll 2
    for (int v = 0; v < N; ++v) __builtin_memcpy(out + v * L, &acc[r][v], sizeof(S));
}

template <class T>
struct Planes {
  using A = Acc<T>;
  static constexpr int L = kSlimBytes / static_cast<int>(sizeof(A)), V = kAbreast * L, W = kLanes<A>;
  const Plan& g;
  const T *src, *w, *bias;
  T* dst;
  i64 strip, buffer;
  Stage<T> stage;
  TermList list;
  A *packed, *made;

  Planes(const Plan& plan, const T* s, const T* weight, const T* b, T* d)
      : g(plan),
        src(s),
        w(weight),
        bias(b),
        dst(d),
        strip(tall_strip(plan)),
        buffer(Lines::kFull + (kTall + 1) * plan.cols.grid + 2 * Lines::kLine + V),
        stage(plan, 1, strip, false),
        packed(nullptr),
        made(nullptr) {}

  static i64 tall_strip(const Plan& g) {
    const i64 row = g.planes() * g.pitch() * static_cast<i64>(sizeof(A));
    return smaller(g.rows.grid, larger(1, (kPlaneBytes / row - g.halo()) / kTall) * kTall);
  }
  i64 slack() const { return kTall * g.pitch() + 2 * V; }
  void share(Arena& a) {
    list = make_terms(g, a, stage.plane, stage.row, 1);
    packed = a.take<A>(g.p.co * g.p.taps);
  }
  void own(Arena& a) {
    stage.take(a, slack());
    made = a.take<A>(buffer);
  }

  // Whether all outputs follow each other, so that whole lines can be written.
  bool in_order() const {
    return sizeof(T) == sizeof(float) && g.phases() == 1 && g.dst.w == 1 && g.dst.h == g.cols.grid &&
           g.dst.c == g.rows.grid * g.cols.grid && g.dst.n == g.p.co * g.dst.c;
  }

  void band(const PlaneTile<A>& tile, const A* x, A* out) const {
    const i64 n = tile.out_row;
    i64 j = 0;
    for (; j + V <= n; j += V) plane_tile<A, kAbreast>(tile, x + j, out + j);
    if (j == n) return;
    // A row ends where it ends, since the next one begins there; narrower ones are written over by the next.
    if (kAbreast > 1 && n - j > L) {
      j = larger(0, n - V);
      return plane_tile<A, kAbreast>(tile, x + j, out + j);
    }
    j = larger(0, n - L);
    plane_tile<A, 1>(tile, x + j, out + j);
  }

  const T* plane_of(i64 q) const { return src + q / g.p.ci * g.src.n + q % g.p.ci * g.src.c; }

  // As stage.fill(), in less time.
  void fill(const T* from, i64 i0, i64 height) {
    const i64 n = g.cols.in;
    if (g.planes() > 1 || n < W || g.src.w != 1) return stage.fill(from, 1, i0, height);
    const i64 first = i0 + g.rows.lo, rows = height + g.halo();
    const i64 top = smaller(rows, larger(0, -first)), bottom = larger(top, smaller(rows, g.rows.in - first));
    if (strip < g.rows.grid) {  // else what lies outside was cleared once
      for (i64 u = 0; u < top; ++u) clear(stage.data + u * stage.row, n);
      for (i64 u = bottom; u < rows; ++u) clear(stage.data + u * stage.row, n);
    }
    A* to = stage.data + top * stage.row;
    from += (first + top) * g.src.h;
    for (i64 u = top; u < bottom; ++u, to += stage.row, from += g.src.h) {
      for (i64 j = 0; j + W <= n; j += W) vstore(to + j, vload(from + j));
      vstore(to + n - W, vload(from + n - W));
    }
  }

  // Plane q; `ahead`: the one that comes next. With `lines`, `done` elements wait in front of this plane's.
  void plane(i64 q, const T* ahead, Lines* lines, i64& done) {
    const i64 c = q % g.p.co;
    const A init = bias ? to_acc(bias[c]) : A(0);
    for (i64 i0 = 0; i0 < g.rows.grid; i0 += strip) {
      const i64 height = smaller(strip, g.rows.grid - i0);
      fill(plane_of(q), i0, height);
      for (i64 f = 0; f < g.phases(); ++f) {
        const i64 fr = f / g.cols.phases(), fc = f % g.cols.phases(), columns = g.cols.places(fc);
        const i64 set = g.set_of_channel(c, 0), e = set * g.phases() + f,
                  rows = smaller(height, g.rows.places(fr) - i0);
        const PlaneTile<A> tile{list.terms(set, f), list.count[e], stage.row, columns, packed + c * g.p.taps, init};
        for (i64 i = 0; i < rows; i += kTall) {
          const i64 tall = smaller(kTall, rows - i);
          if (f == 0 && ahead)
            touch_rows(ahead, g.src.h, (i0 + i) * g.rows.in_step(),
                       smaller((i0 + i + tall) * g.rows.in_step(), g.rows.in), g.cols.in * g.src.w);
          if (lines) {
            if constexpr (sizeof(T) == sizeof(float)) {
              if (done >= Lines::kFull) done -= lines->flush(done);
              band(tile, stage.data + i * stage.row, made + done);
              done += tall * columns;
            }
            continue;
          }
          band(tile, stage.data + i * stage.row, made);
          T* to = dst + offset(g.dst, q / g.p.co, c, (i0 + i) * g.rows.out_step() + fr, fc);
          for (i64 r = 0; r < tall; ++r, to += g.dst.h * g.rows.out_step())
            write_line<T>(to, g.dst.w * g.cols.out_step(), made + r * columns, columns);
        }
      }
    }
  }

  void work() {
#pragma omp for schedule(static)
    for (i64 o = 0; o < g.p.co; ++o)
      for (i64 t = 0; t < g.p.taps; ++t) packed[o * g.p.taps + t] = to_acc(w[o * g.p.taps + t]);
    stage.prepare(slack());
    const i64 planes = g.p.n * g.p.co;
    const int shares = parallel(g.p) ? g.p.threads : 1;
#pragma omp for schedule(static)
    for (int s = 0; s < shares; ++s) {
      const i64 first = planes * s / shares, last = planes * (s + 1) / shares;
      i64 done = 0;
      if constexpr (__is_same(T, float)) {
        if (in_order()) {
          T* const to = dst + first * g.dst.c;
          const i64 skip = static_cast<i64>(reinterpret_cast<std::uintptr_t>(to) % 64 / sizeof(T));
          Lines lines{made, to - skip, skip, planes * g.dst.c * static_cast<i64>(sizeof(T)) >= kPastPlanes};
          done = skip;
          for (i64 q = first; q < last; ++q) plane(q, q + 1 < last ? plane_of(q + 1) : nullptr, &lines, done);
          lines.finish(done);
          stream_fence();
          continue;
        }
      }
      for (i64 q = first; q < last; ++q) plane(q, q + 1 < last ? plane_of(q + 1) : nullptr, nullptr, done);
    }
  }
};

// Narrow maps fill vectors better as one long line.
inline bool in_planes(const Params& p) {
  const bool depthwise = p.groups == p.ci && p.groups == p.co;
  return depthwise && p.layout == Layout::nchw && p.wo >= 16 && p.n * p.ci >= p.threads;
}

template <class T>
int planes_conv(const Params& p, bool backward, const T* src, const T* w, const T* bias, T* dst) {
  const Plan g = make_plan(p, backward);
  Planes<T> job(g, src, w, bias, dst);
  return run_job(job, p);
}

}  // namespace rsdc
}  // namespace
