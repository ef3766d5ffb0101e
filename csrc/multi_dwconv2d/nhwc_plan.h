// NHWC: which taps each output row needs, as runs that the microkernel knows, and where their weights come from.
#pragma once
#include "multi_dwconv2d/kernel_cpu.h"
#include "multi_dwconv2d/nhwc_tile.h"

namespace {
namespace nhwc {

constexpr double kTeamGrain = 400e3;  // multiply-adds below which a team of threads costs more than it saves

// Bump allocation out of one block of scratch; with a null base it only measures.
struct Arena {
  char* base;
  std::size_t used;
  template <class X>
  X* take(i64 count) {
    X* p = base ? reinterpret_cast<X*>(base + used) : nullptr;
    used += (static_cast<std::size_t>(count) * sizeof(X) + 63) / 64 * 64;
    return p;
  }
};

// packed[slot] += weight[branch][cell]. More than one term on a slot merges branches, more than one slot with the
// same (branch, cell) means that several outputs use that weight.
struct Term {
  int slot, branch, cell;
};

// What is computed from the staged planes for one row of the grid: one output plane (forward) or one phase of the
// input gradient. Slot `slot` holds what sums start from, taps follow.
struct Pass {
  int run, runs, count[kRunKinds], slot, slots, term, terms;
  i64 row0, col0, channel;  // first output row, column and channel
};

struct Plane {
  int lo, hi, ring;  // row offsets in use; staged rows kept
  i64 channel;       // first channel in the source
};

// Forward reads x and writes y; the input gradient reads g (one plane a branch) and writes gx. Both walk a grid of
// ho x wo points; point (i, j) reads source pixels around (in_step * i, in_step * j) and writes (out_step * i + row0,
// ...).
struct Plan {
  bool backward, planar;  // planar: NCHW tensors, transposed on the way
  i64 in_h, in_w, in_step_h, in_step_w, out_h, out_w, out_step_h, out_step_w, rows, cols;
  Strides in, out;
  int first, branches;  // of p.branches: those that share input channels
  i64 channels;
  int passes, planes, slots, runs, terms, lo_c, hi_c, hi_row;
  Pass* pass;
  Plane* plane;
  Run* run;
  Term* term;
  int* mark;
  int clip_h, clip_w;
};

inline int imin(i64 a, i64 b) { return static_cast<int>(a < b ? a : b); }
inline int imax(i64 a, i64 b) { return static_cast<int>(a > b ? a : b); }

inline i64 floor_div(i64 a, i64 b) { return a / b - (a % b < 0); }

// Branches whose taps meet in set q: [from, to).
inline void set_of(const Params& p, const Plan& g, int q, int* from, int* to) {
  *from = p.combine == Combine::concat ? g.first + q : g.first;
  *to = p.combine == Combine::add ? g.first + g.branches : g.first + q + 1;
}
inline int sets(const Params& p, const Plan& g) { return p.combine == Combine::add ? 1 : g.branches; }

// Sizes only. Taps further out than the image is wide never meet a pixel and are left out.
inline Plan outline(const Params& p, bool backward, int first, int branches) {
  Plan g{};
  g.backward = backward;
  g.planar = p.layout == Layout::nchw;
  g.first = first;
  g.branches = branches;
  g.channels = p.branches[first].channels;
  g.rows = p.ho;
  g.cols = p.wo;
  const Strides x = p.x, y = p.y;
  if (backward) {
    g.in_h = p.ho, g.in_w = p.wo, g.in_step_h = 1, g.in_step_w = 1, g.in = y;
    g.out_h = p.h, g.out_w = p.w, g.out_step_h = p.stride_h, g.out_step_w = p.stride_w, g.out = x;
  } else {
    g.in_h = p.h, g.in_w = p.w, g.in_step_h = p.stride_h, g.in_step_w = p.stride_w, g.in = x;
    g.out_h = p.ho, g.out_w = p.wo, g.out_step_h = 1, g.out_step_w = 1, g.out = y;
  }
  const int q = sets(p, g);
  g.planes = backward ? q : 1;
  g.passes = backward ? static_cast<int>(p.stride_h * p.stride_w) : q;
  i64 reach = 0, slots = g.passes;
  for (int i = 0; i < q; ++i) {
    int from, to;
    set_of(p, g, i, &from, &to);
    for (int m = from; m < to; ++m) {
      const Branch& b = p.branches[m];
      slots += b.kernel * b.kernel;
      const i64 r = b.dilation * (b.kernel / 2);
      reach = r > reach ? r : reach;
    }
  }
  g.slots = static_cast<int>(slots);
  const i64 step_h = backward ? p.stride_h : 1, step_w = backward ? p.stride_w : 1;
  g.clip_h = imin((reach + step_h - 1) / step_h, g.in_h - 1);
  g.clip_w = imin((reach + step_w - 1) / step_w, g.in_w - 1);
  return g;
}

inline void take_plan(Plan& g, Arena& a) {
  g.pass = a.take<Pass>(g.passes);
  g.plane = a.take<Plane>(g.planes);
  g.run = a.take<Run>(g.slots);
  g.term = a.take<Term>(g.slots);
  g.mark = a.take<int>(2 * g.clip_w + 1);
}

// The kernel row or column that lies t pixels from the centre, or -1.
inline int cell_at(const Branch& b, i64 t) {
  const i64 r = b.kernel / 2, reach = b.dilation * r;
  if (t < -reach || t > reach || t % b.dilation) return -1;
  return static_cast<int>(t / b.dilation + r);
}

inline void add_row(const Params& p, Plan& g, Pass& s, int plane, int dr, int longest) {
  const int clip = g.clip_w, step = static_cast<int>(g.in_step_w);
  int from, to;
  set_of(p, g, g.backward ? plane : static_cast<int>(&s - g.pass), &from, &to);
  const i64 th = g.backward ? s.row0 - g.out_step_h * dr : dr;
  int* mark = g.mark + clip;
  bool any = false;
  for (int m = from; m < to; ++m) any = any || cell_at(p.branches[m], th) >= 0;
  if (!any) return;
  for (int dc = -clip; dc <= clip; ++dc) {
    const i64 tw = g.backward ? s.col0 - g.out_step_w * dc : dc;
    mark[dc] = -1;
    for (int m = from; m < to; ++m)
      if (cell_at(p.branches[m], th) >= 0 && cell_at(p.branches[m], tw) >= 0) mark[dc] = 0;
  }
  for (int dc = -clip; dc <= clip; ++dc) {
    if (mark[dc] != 0) continue;
    int chain = 1;
    while (dc + chain * step <= clip && mark[dc + chain * step] == 0) ++chain;
    for (int at = 0; at < chain;) {
      const int length = piece(chain - at, longest), col = dc + at * step;
      Plane& from_plane = g.plane[plane];
      from_plane.lo = imin(from_plane.lo, dr);
      from_plane.hi = imax(from_plane.hi, dr);
      g.lo_c = imin(g.lo_c, col);
      g.hi_c = imax(g.hi_c, col + (length - 1) * step);
      g.run[g.runs++] = {plane, 0, run_kind(length), dr, col, s.slot + s.slots, 0, 0, 0, 0};
      ++s.runs;
      for (int i = 0; i < length; ++i, ++at) mark[col + i * step] = s.slot + s.slots++;
    }
  }
  for (int dc = -clip; dc <= clip; ++dc) {
    const i64 tw = g.backward ? s.col0 - g.out_step_w * dc : dc;
    for (int m = from; m < to; ++m) {
      const int u = cell_at(p.branches[m], th), v = cell_at(p.branches[m], tw);
      if (u < 0 || v < 0) continue;
      g.term[g.terms++] = {mark[dc], m, u * static_cast<int>(p.branches[m].kernel) + v};
      ++s.terms;
    }
  }
}

// `longest`: the longest run wanted.
inline void build(const Params& p, Plan& g, int longest) {
  const Branch* own = p.branches + g.first;
  g.lo_c = g.hi_c = 0;
  for (int q = 0; q < g.planes; ++q) g.plane[q] = {0, 0, 0, g.backward ? own[q].out_start : own[0].in_start};
  int slot = 0;
  for (int k = 0; k < g.passes; ++k) {
    Pass& s = g.pass[k];
    s = Pass{};
    s.slot = slot;
    s.slots = 1;
    s.run = g.runs;
    s.term = g.terms;
    s.row0 = g.backward ? k / g.out_step_w : 0;
    s.col0 = g.backward ? k % g.out_step_w : 0;
    s.channel = g.backward ? own[0].in_start : own[k].out_start;
    for (int q = 0; q < g.planes; ++q)
      for (int dr = -g.clip_h; dr <= g.clip_h; ++dr) add_row(p, g, s, q, dr, longest);
    slot += s.slots;
    // Runs of one kind together, longest first; an insertion keeps their order otherwise.
    Run* r = g.run + s.run;
    for (int i = 0; i < s.runs; ++i) ++s.count[r[i].kind];
    for (int i = 1; i < s.runs; ++i)
      for (int j = i; j > 0 && r[j - 1].kind > r[j].kind; --j) {
        const Run t = r[j];
        r[j] = r[j - 1];
        r[j - 1] = t;
      }
  }
  g.slots = slot;
  g.hi_row = 0;
  for (int q = 0; q < g.planes; ++q) g.hi_row = imax(g.hi_row, g.plane[q].hi);
}

// How a staged row lies in scratch: [vector][column class, for strides][column][channel].
template <class A>
struct Ring {
  i64 panel, class_cols, vec, row;  // grid columns at once; columns of a class; elements of one vector's row, of all
  int vecs, rows;                   // vectors of a channel block; grid rows at once
};

template <class A>
Ring<A> ring_of(Plan& g, i64 panel, int vecs, int rows_at_once) {
  const i64 s = g.in_step_w, v = kLanes<A>;
  Ring<A> r;
  r.panel = panel;
  r.vecs = vecs;
  r.rows = rows_at_once;
  r.class_cols = panel + (g.hi_c - g.lo_c) / s;
  r.vec = s * r.class_cols * v;
  r.row = vecs * r.vec;
  for (int q = 0; q < g.planes; ++q)
    g.plane[q].ring = g.plane[q].hi - g.plane[q].lo + 1 + (rows_at_once - 1) * static_cast<int>(g.in_step_h);
  for (int i = 0; i < g.runs; ++i) {
    Run& t = g.run[i];
    const i64 c = t.dc - g.lo_c;
    t.row = t.dr - g.plane[t.plane].lo;
    t.x = (c % s * r.class_cols + c / s) * v;
    t.w = static_cast<i64>(t.slot) * v;
    t.lo = static_cast<int>(-floor_div(t.dc, s));
    t.hi = static_cast<int>(floor_div(g.in_w - 1 - t.dc, s)) + 1;
  }
  return r;
}

template <class A>
i64 ring_elements(const Plan& g, const Ring<A>& r) {
  i64 rows = 0;
  for (int q = 0; q < g.planes; ++q) rows += g.plane[q].ring;
  return rows * r.row;
}

}  // namespace nhwc
}  // namespace
