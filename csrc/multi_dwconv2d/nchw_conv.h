// NCHW forward and input gradient: both are convolutions of staged planes, by kernels or by flipped kernels.
#pragma once
#include "multi_dwconv2d/nchw_cut.h"

namespace {
namespace nchw {

template <int TH, class A>
void conv_columns(const ConvTile<A>& t, i64 n) {
  using W = Vector<A, kWide>;
  using N = Vector<A, kNarrow>;
  if constexpr (kWide != kNarrow) {
    constexpr i64 LW = lanes<W, A>, LN = lanes<N, A>;
    const i64 rest = n % LW;
    if (n <= LN) return conv_tile<TH, N>(t, 0, n);
    if (n > LW && rest && rest <= LN) {
      conv_tile<TH, W>(t, 0, n - rest);
      return conv_tile<TH, N>(t, n - LN, n);
    }
  }
  conv_tile<TH, W>(t, 0, n);
}

// One output map's region; t comes with parts, scratch, weights and bias, and y at the region's first element.
template <class A>
void conv_region(ConvTile<A> t, i64 i0, i64 rows, i64 cols) {
  A* const y = t.y;
  i64 sevens = sevens_of(rows);
  for (i64 i = 0; i < rows;) {
    const i64 left = rows - i;
    const bool seven = left <= 7 ? left > 4 : sevens > 0;
    const i64 height = left <= 4 && rows < 8 ? 4 : seven ? 7 : 8;
    if (rows >= 8 && left < height) i = rows - height;
    t.i = i0 + i;
    t.offset = i * t.pitch;
    t.y = y + i * t.y_row;
    t.rows = static_cast<int>(smaller(height, rows - i));
    if (height == 8)
      conv_columns<8>(t, cols);
    else if (height == 7)
      conv_columns<7>(t, cols);
    else
      conv_columns<4>(t, cols);
    if (seven) --sevens;
    i += height;
  }
}

template <class T>
struct Conv {
  using A = Acc<T>;
  const Params& p;
  const Plan& plan;
  const Cut& cut;
  const T *x, *w, *bias;  // x: what is read (the output's gradient in the input pass); y: what is written
  T* y;
  bool input, past;  // past: outputs go past the caches

  bool direct() const { return !past && sizeof(T) == sizeof(A) && (!input || p.stride_w == 1); }
  bool far() const {
    const i64 all = p.n * (p.c * p.h * p.w + p.c_out * p.ho * p.wo), size = static_cast<i64>(sizeof(T));
    return p.h * p.w * size >= kFarPlane || all * size >= kFarBytes;
  }
  i64 slots_size() const { return cut.batch * plan.sources.size * cut.frame.size; }
  i64 sums_size() const { return cut.batch * 8 * cut.pitch; }
  i64 out_size() const { return direct() ? 0 : cut.batch * cut.rows * cut.pitch; }
  i64 scratch_size() const {
    return static_cast<i64>(sizeof(A)) * (slots_size() + sums_size() + out_size() + cut.channels * plan.weights);
  }

  void run(i64 unit, A* memory, i64& packed) const {
    const Unit u = cut.unit(unit, p);
    A* const weights = memory + slots_size() + sums_size() + out_size();
    if (packed != u.c0) {
      for (i64 c = u.c0; c < u.c1; ++c) pack(weights + (c - u.c0) * plan.weights, plan, p, w, c, input);
      packed = u.c0;
    }
    for (i64 n = u.n0; n < u.n1; n += cut.batch)
      for (i64 c = u.c0; c < u.c1; ++c) {
        const bool turn = c + 1 == u.c1;  // then the next maps are those of other images
        const Step at{n, smaller(n + cut.batch, u.n1), c, u.region, turn ? cut.batch : 0, turn ? u.c0 - c : 1};
        const bool more = far() && (!turn || at.n1 < u.n1);
        for (i64 s = 0; s < plan.sources.size; ++s) read(s, at, more, memory);
        for (i64 o = 0; o < plan.outputs.size; ++o) write(o, at, more, memory, weights + (c - u.c0) * plan.weights);
      }
  }

  // Images n0 to n1 of channel c; then come the images dn further, of the channel dc further.
  struct Step {
    i64 n0, n1, c;
    Region region;
    i64 dn, dc;
  };

  void read(i64 s, const Step& at, bool more, A* memory) const {
    const Map& m = plan.sources[s];
    const Strides& st = input ? p.y : p.x;
    const i64 sh = input ? 1 : p.stride_h, sw = input ? 1 : p.stride_w;
    const Region& r = at.region;
    for (i64 n = at.n0; n < at.n1; ++n) {
      A* const slot = memory + ((n - at.n0) * plan.sources.size + s) * cut.frame.size;
      for (i64 q = m.first; q <= m.last; ++q) {
        const T* plane = x + offset(st, n, (input ? p.branches[q].out_start : 0) + at.c, m.row0, m.col0);
        if (q == m.first)
          stage(slot, cut.frame, r, plane, st.h * sh, sw, m.h, m.w);
        else
          stage_more(slot, cut.frame, r, plane, st.h * sh, sw, m.h, m.w);
        if (more && n + at.dn < p.n)
          touch_rows(plane + at.dn * st.n + at.dc * st.c + r.i0 * st.h * sh, smaller(r.i1, m.h) - r.i0, st.h * sh,
                     m.w * sw);
      }
    }
  }

  void write(i64 o, const Step& at, bool more, A* memory, const A* weights) const {
    const Map& m = plan.outputs[o];
    const Region& r = at.region;
    const i64 rows = smaller(r.i1, m.h) - r.i0, cols = smaller(r.j1, m.w) - r.j0;
    if (rows <= 0 || cols <= 0) return;
    const i64 channel = input ? at.c : p.branches[m.first].out_start + at.c;
    const i64 sh = input ? p.stride_h : 1, sw = input ? p.stride_w : 1;
    const Strides& st = input ? p.x : p.y;
    T* const to = y + offset(st, at.n0, channel, m.row0 + r.i0 * sh, m.col0 + r.j0 * sw);
    const Output& parts = plan.output_parts[o];
    A* const sums = memory + slots_size();
    A* const out = sums + sums_size();
    ConvTile<A> t{};
    t.parts = plan.parts.data + parts.first_part;
    t.count = parts.parts;
    t.x = memory;
    t.w = weights;
    t.sums = sums;
    t.pitch = cut.frame.pitch;
    t.init = bias ? to_acc(bias[channel]) : A(0);
    t.planes = at.n1 - at.n0;
    t.x_plane = plan.sources.size * cut.frame.size;
    if (direct()) {
      t.y = reinterpret_cast<A*>(to);
      t.y_row = st.h * sh;
      t.y_plane = st.n;
    } else {
      t.y = out;
      t.y_row = past ? cols : cut.pitch;
      t.y_plane = cut.rows * cut.pitch;
    }
    conv_region(t, r.i0, rows, cols);
    for (i64 n = at.n0; n < at.n1; ++n) {
      if (past)
        stream_out(to + (n - at.n0) * st.n, out + (n - at.n0) * t.y_plane, rows * cols);
      else if (!direct())
        write_rows(to + (n - at.n0) * st.n, st.h * sh, sw, out + (n - at.n0) * t.y_plane, cut.pitch, rows, cols);
      if (!past && more && n + at.dn < p.n)
        touch_rows(to + (n - at.n0 + at.dn) * st.n + at.dc * st.c, rows, st.h * sh, cols * sw);
    }
  }
};

// Whether outputs go past the caches, line by line: those that caches would not keep anyway, of planes in whole lines.
template <class T>
bool past_caches(const Params& p, const Cut& cut, const T* y, bool input) {
  const Strides& st = input ? p.x : p.y;
  const i64 h = input ? p.h : p.ho, w = input ? p.w : p.wo, line = 64 / static_cast<i64>(sizeof(T));
  const i64 bytes = p.n * (input ? p.c : p.c_out) * h * w * static_cast<i64>(sizeof(T));
  return kCanStream && bytes >= kPastBytes && reinterpret_cast<std::uintptr_t>(y) % 64 == 0 && st.h == w &&
         st.c % line == 0 && st.n % line == 0 && h * w % line == 0 && cut.col_cuts == 1 &&
         (cut.row_cuts == 1 || cut.rows * w % line == 0) && (!input || p.stride_h * p.stride_w == 1);
}

template <class T>
int conv(const Params& p, const T* x, const T* w, const T* bias, T* y, Pass pass) {
  Plan plan;
  if (!make_plan(plan, p, pass)) return out_of_memory;
  const int threads = team(p);
  const Cut cut = make_cut(plan, p, static_cast<i64>(sizeof(Acc<T>)), threads > 1 ? threads * kUnitsPerThread : 1);
  place(plan, cut.frame);
  const Conv<T> job{p, plan, cut, x, w, bias, y, pass == Pass::input, past_caches(p, cut, y, pass == Pass::input)};
  return for_units(cut.units(p), threads, job);
}

// Branches that read channels of their own are convolutions of their own.
template <class T>
int each_branch(const Params& p, int (*run)(const Params&, const T*, const T*, const T*, T*), const T* x, const T* w,
                const T* bias, T* y, bool input) {
  bool own = false;
  for (i64 m = 0; m < p.num_branches; ++m) own = own || p.branches[m].in_start != 0 || p.branches[m].channels != p.c;
  if (!own) return run(p, x, w, bias, y);
  for (i64 m = 0; m < p.num_branches; ++m) {
    Branch b = p.branches[m];
    Params q = p;
    q.c = b.channels;
    q.num_branches = 1;
    q.branches = &b;
    q.combine = Combine::concat;
    const i64 skip = b.in_start * p.x.c;
    b.in_start = 0;
    if (const int e = run(q, input ? x : x + skip, w, bias, input ? y + skip : y)) return e;
  }
  return ok;
}

template <class T>
int fwd(const Params& p, const T* x, const T* w, const T* bias, T* y) {
  if (p.n * p.c * p.ho * p.wo == 0) return ok;
  return each_branch<T>(
      p, [](const Params& q, const T* a, const T* b, const T* c, T* d) { return conv(q, a, b, c, d, Pass::forward); },
      x, w, bias, y, false);
}

template <class T>
int bwd_x(const Params& p, const T* g, const T* w, T* gx) {
  if (p.n * p.c * p.h * p.w == 0) return ok;
  return each_branch<T>(
      p, [](const Params& q, const T* a, const T* b, const T* c, T* d) { return conv(q, a, b, c, d, Pass::input); }, g,
      w, nullptr, gx, true);
}

}  // namespace nchw
}  // namespace
