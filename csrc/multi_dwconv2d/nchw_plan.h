// What a call does, in the microkernels' terms: which maps are staged, which parts of which kernels they meet.
#pragma once
#include <cstdlib>

#include "multi_dwconv2d/nchw_tile.h"
#include "multi_dwconv2d/params.h"

namespace {
namespace nchw {

using namespace lk::multi_dwconv2d;

template <class E>
struct List {
  E* data = nullptr;
  i64 size = 0, room = 0;
  bool lost = false;  // no memory for an element
  List() = default;
  List(const List&) = delete;
  List& operator=(const List&) = delete;
  ~List() { std::free(data); }
  void add(const E& e) {
    if (size == room) {
      const i64 more = room ? 2 * room : 16;
      void* p = std::realloc(static_cast<void*>(data), static_cast<std::size_t>(more) * sizeof(E));
      if (!p) {
        lost = true;
        return;
      }
      data = static_cast<E*>(p);
      room = more;
    }
    data[size++] = e;
  }
  E& operator[](i64 i) { return data[i]; }
  const E& operator[](i64 i) const { return data[i]; }
};

enum class Pass { forward, input, weight };

// Every stride-th row and column of a channel's plane: row i, column j is plane[row0 + i * stride_h][col0 + ...].
// With last > first, the sum of the planes of branches first to last.
struct Map {
  i64 row0, col0, h, w, first, last;
};

// A kernel as packed for one channel: the sum of the branches first to last that share its dilation.
struct Group {
  i64 kernel, dilation, first, last, w;
};

struct Output {
  i64 first_part, parts;
};

struct Plan {
  List<Map> sources, outputs;
  List<Group> groups;
  List<Part> parts;  // Part::x counts from slot 0 until place() knows the frame
  List<i64> part_source;
  List<Output> output_parts;
  i64 weights = 0;  // packed elements of a channel
  i64 ho = 0, wo = 0;
  i64 top = 0, bottom = 0, left = 0, right = 0;
  bool lost() const {
    return sources.lost || outputs.lost || groups.lost || parts.lost || part_source.lost || output_parts.lost;
  }
};

inline i64 mod(i64 a, i64 b) { return (a % b + b) % b; }
inline i64 gcd(i64 a, i64 b) { return b ? gcd(b, a % b) : a; }

// Taps along one axis that meet the same every-stride-th rows: tap first + n * tap_step, of count, meets row
// offset + n * step of the map that begins at row `phase`.
struct Lattice {
  i64 first, tap_step, count, phase, offset, step;
};

inline i64 lattices(i64 kernel, i64 dilation, i64 stride) { return smaller(kernel, stride / gcd(dilation, stride)); }

// Cut to the taps that any of `out` rows meets within a map of ceil((full - phase) / stride) rows.
inline Lattice lattice(i64 kernel, i64 dilation, i64 stride, bool input, i64 index, i64 out, i64 full) {
  const i64 g = gcd(dilation, stride), e = dilation * (index - kernel / 2);
  Lattice t;
  t.phase = mod(input ? -e : e, stride);
  t.offset = (input ? e + t.phase : e - t.phase) / stride;
  t.first = index;
  t.tap_step = stride / g;
  t.step = dilation / g;
  t.count = ceil_div(kernel - index, t.tap_step);
  const i64 rows = input ? full : larger(0, ceil_div(full - t.phase, stride));
  const i64 outs = input ? larger(0, ceil_div(out - t.phase, stride)) : out;
  while (t.count > 0 && (t.offset <= -outs || rows == 0)) {
    t.offset += t.step;
    t.first += t.tap_step;
    --t.count;
  }
  while (t.count > 0 && t.offset + (t.count - 1) * t.step >= rows) --t.count;
  return t;
}

// How many rows of taps the next part takes of `left`, `step` rows apart.
inline int next_kind(i64 left, i64 step, lk::DType dtype) {
  if (step == 1) {
    if (left == 5 || left == 8) return k5;
    if (left == 7 || left >= 10) return k7;
    return left >= 3 ? k3 : kRow;
  }
  if (left == 5 && step == 2 && dtype != lk::DType::f64) return k5by2;
  if (left >= 3 && step <= 3) return step == 2 ? k3by2 : k3by3;
  return kRow;
}

inline i64 find_map(List<Map>& maps, const Map& m) {
  for (i64 i = 0; i < maps.size; ++i) {
    const Map& a = maps[i];
    if (a.row0 == m.row0 && a.col0 == m.col0 && a.first == m.first) return i;
  }
  maps.add(m);
  return maps.size - 1;
}

// Adds the parts of group g between the planes of branches first to last on the gradient's side and x.
inline void add_parts(Plan& plan, const Params& p, Pass pass, const Group& g, i64 out, i64 first, i64 last) {
  const bool input = pass == Pass::input;
  const i64 out_h = input ? p.h : p.ho, out_w = input ? p.w : p.wo, in_h = input ? p.ho : p.h,
            in_w = input ? p.wo : p.w;
  for (i64 a = 0; a < lattices(g.kernel, g.dilation, p.stride_h); ++a)
    for (i64 b = 0; b < lattices(g.kernel, g.dilation, p.stride_w); ++b) {
      const Lattice r = lattice(g.kernel, g.dilation, p.stride_h, input, a, out_h, in_h);
      const Lattice c = lattice(g.kernel, g.dilation, p.stride_w, input, b, out_w, in_w);
      if (r.count <= 0 || c.count <= 0) continue;
      i64 source;
      if (input) {
        if (r.phase != plan.outputs[out].row0 || c.phase != plan.outputs[out].col0) continue;
        source = find_map(plan.sources, {0, 0, p.ho, p.wo, first, last});
      } else {
        source = find_map(plan.sources, {r.phase, c.phase, ceil_div(p.h - r.phase, p.stride_h),
                                         ceil_div(p.w - c.phase, p.stride_w), 0, 0});
      }
      plan.left = larger(plan.left, -c.offset);
      plan.right = larger(plan.right, c.offset + (c.count - 1) * c.step);
      for (i64 n = 0; n < r.count;) {
        const int kind = next_kind(r.count - n, r.step, p.dtype);
        const i64 row = r.offset + n * r.step, rows = kind_rows(kind);
        plan.top = larger(plan.top, -row);
        plan.bottom = larger(plan.bottom, row + (rows - 1) * r.step);
        const i64 w = g.w + (r.first + n * r.tap_step) * g.kernel + c.first;
        plan.parts.add(
            {kind, row, plan.sources[source].h, c.offset, c.count, c.step, w, r.tap_step * g.kernel, c.tap_step});
        plan.part_source.add(source);
        n += rows;
      }
    }
}

// Groups of branches first to last by dilation, one merged kernel for each.
inline void add_groups(Plan& plan, const Params& p, i64 first, i64 last) {
  for (i64 m = first; m <= last; ++m) {
    bool seen = false;
    for (i64 q = first; q < m; ++q) seen = seen || p.branches[q].dilation == p.branches[m].dilation;
    if (seen) continue;
    i64 kernel = 0;
    for (i64 q = m; q <= last; ++q)
      if (p.branches[q].dilation == p.branches[m].dilation) kernel = larger(kernel, p.branches[q].kernel);
    plan.groups.add({kernel, p.branches[m].dilation, first, last, plan.weights});
    plan.weights += kernel * kernel;
  }
}

// All branches share the input channels here; split calls come one branch at a time.
inline bool make_plan(Plan& plan, const Params& p, Pass pass) {
  const i64 m = p.num_branches;
  const bool add = p.combine == Combine::add, cumulative = p.combine == Combine::cumulative;
  const auto open = [&plan] { plan.output_parts.add({plan.parts.size, 0}); };
  const auto close = [&plan] {
    Output& o = plan.output_parts[plan.output_parts.size - 1];
    o.parts = plan.parts.size - o.first_part;
  };
  if (pass == Pass::input) {
    plan.ho = ceil_div(p.h, p.stride_h);
    plan.wo = ceil_div(p.w, p.stride_w);
    if (add)
      add_groups(plan, p, 0, m - 1);
    else
      for (i64 q = 0; q < m; ++q) add_groups(plan, p, q, q);
    for (i64 a = 0; a < smaller(p.stride_h, p.h); ++a)
      for (i64 b = 0; b < smaller(p.stride_w, p.w); ++b) {
        plan.outputs.add({a, b, ceil_div(p.h - a, p.stride_h), ceil_div(p.w - b, p.stride_w), 0, 0});
        open();
        for (i64 g = 0; g < plan.groups.size && !plan.lost(); ++g) {
          const i64 q = add ? 0 : plan.groups[g].first;
          add_parts(plan, p, pass, plan.groups[g], plan.outputs.size - 1, q, cumulative ? m - 1 : q);
        }
        close();
      }
  } else {
    plan.ho = p.ho;
    plan.wo = p.wo;
    const bool sums = pass == Pass::forward;  // the weight gradient sums planes instead of kernels
    for (i64 q = 0; q < (add ? 1 : m) && !plan.lost(); ++q) {
      plan.outputs.add({0, 0, p.ho, p.wo, q, !sums && cumulative ? m - 1 : q});
      open();
      const i64 g0 = plan.groups.size;
      add_groups(plan, p, add || (sums && cumulative) ? 0 : q, add ? m - 1 : q);
      for (i64 g = g0; g < plan.groups.size; ++g) add_parts(plan, p, pass, plan.groups[g], q, 0, 0);
      close();
    }
  }
  return !plan.lost();
}

constexpr i64 kSpareRows = 8;

// Geometry of staged maps for regions of at most rows x cols outputs. Tiles taller than a region read spare rows,
// whose contents never reach a stored sum.
inline Frame frame(const Plan& plan, i64 rows, i64 cols, i64 wide, i64 size_of) {
  Frame f;
  const i64 line = 64 / size_of;
  f.top = plan.top;
  f.bottom = plan.bottom;
  f.left = plan.left;
  f.right = plan.right;
  f.zeros = cols == plan.wo;
  const i64 gap = f.zeros ? larger(f.left, f.right) : f.left + f.right;
  f.pitch = ceil_div(cols + gap, line) * line;
  if (f.pitch % (16 * line) == 0) f.pitch += line;  // or the rows of a column share few cache sets
  f.origin = ceil_div(f.left, line) * line + f.top * f.pitch;
  f.size = f.origin + f.pitch * (rows + f.bottom + kSpareRows) + ceil_div(wide + f.right, line) * line;
  return f;
}

inline void place(Plan& plan, const Frame& f) {
  for (i64 i = 0; i < plan.parts.size; ++i) {
    Part& q = plan.parts[i];
    q.x += plan.part_source[i] * f.size + f.origin + q.row * f.pitch;
  }
}

// d += s, a kernel of K x K, in a matrix of `pitch` columns.
template <int K, class T>
void add_kernel(Acc<T>* d, i64 pitch, const T* s) {
  for (int u = 0; u < K; ++u, d += pitch)
#pragma GCC unroll 8
    for (int v = 0; v < K; ++v) d[v] += to_acc(s[u * K + v]);
}

template <class T>
void pack(Acc<T>* dst, const Plan& plan, const Params& p, const T* w, i64 channel, bool flip) {
  for (i64 n = 0; n < plan.groups.size; ++n) {
    const Group& g = plan.groups[n];
    Acc<T>* d = dst + g.w;
    const i64 area = g.kernel * g.kernel;
    if (g.first != g.last)
      for (i64 i = 0; i < area; ++i) d[i] = 0;
    for (i64 m = g.first; m <= g.last; ++m) {
      const Branch& b = p.branches[m];
      if (b.dilation != g.dilation) continue;
      const T* s = w + b.weight_start + channel * b.kernel * b.kernel;
      const i64 k = b.kernel;
      Acc<T>* to = d + (g.kernel - k) / 2 * (g.kernel + 1);
      if (g.first == g.last)
        for (i64 i = 0; i < area; ++i) d[i] = to_acc(s[i]);
      else if (k == g.kernel)
        for (i64 i = 0; i < area; ++i) d[i] += to_acc(s[i]);
      else if (k == 5)
        add_kernel<5>(to, g.kernel, s);
      else if (k == 3)
        add_kernel<3>(to, g.kernel, s);
      else
        for (i64 u = 0; u < k; ++u)
          for (i64 v = 0; v < k; ++v) to[u * g.kernel + v] += to_acc(s[u * k + v]);
    }
    if (flip)
      for (i64 i = 0; i < area / 2; ++i) {
        const Acc<T> first = d[i];
        d[i] = d[area - 1 - i];
        d[area - 1 - i] = first;
      }
  }
}

}  // namespace nchw
}  // namespace
