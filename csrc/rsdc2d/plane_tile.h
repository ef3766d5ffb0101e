// Depthwise microkernels on staged planes: rows of a vector each, whose inputs serve every tap of a column of the
// window that meets them.
#pragma once
#include "rsdc2d/stage.h"

namespace {
namespace rsdc {

#if defined(__AVX512F__)
constexpr int kTall = 16, kShort = 8;  // rows of a tile
#else
constexpr int kTall = 8, kShort = 8;
#endif
constexpr int kDeep = 4;      // rows from the first tap of a unit to its last, at most
constexpr int kUnitTaps = 3;  // of a unit, at most: more are rare, and tall tiles leave no registers for their weights

// Taps of a column of the window: bit d - 1 of `kind` says that one lies d rows below the first, which reads at `at`.
struct Unit {
  i64 at;
  int kind, first;   // first: of its weights, in the order of `slot`
  int down, across;  // the first tap's shift
};

constexpr int depth_of(int kind) { return kind >= 8 ? 4 : kind >= 4 ? 3 : kind >= 2 ? 2 : kind; }
constexpr int taps_of(int kind) { return 1 + (kind & 1) + (kind >> 1 & 1) + (kind >> 2 & 1) + (kind >> 3 & 1); }
constexpr bool has_tap(int kind, int d) { return d == 0 || (kind >> (d - 1) & 1) != 0; }
// Kinds that a tile may end with: its rows are then written as they are done, not all of them at once. Most sets have
// one.
constexpr bool may_end(int kind) { return kind == 0 || kind == 1 || kind == 2; }
#define LK_END_KINDS(M) M(0) M(1) M(2)

// The taps of every set and phase as units; slot: which weight the i-th tap of the units is.
struct UnitList {
  i64 taps, phases;
  Unit* unit;
  i64* count;
  int* slot;
  i64 index(i64 set, i64 phase) const { return set * phases + phase; }
  const Unit* begin(i64 e) const { return unit + e * taps; }
  const Unit* end(i64 e) const { return begin(e) + count[e]; }
};

constexpr i64 kMostRows = 63;  // of a window

// Finds units. A window's rows are taken in the order in which staged memory has them.
struct UnitFinder {
  struct Line {
    i64 at, by;  // where it lies in staged memory; how many grid rows from its output
    int plane, cell;
  };
  const Plan& g;
  i64 phase, lines, row;
  Line line[kMostRows], column[kMostRows];  // column: of every cell, with a negative plane where it does not count
  int order[kMostRows];                     // of a cell's row, negative where it does not count

  UnitFinder(const Plan& plan, i64 f, i64 plane, i64 row_) : g(plan), phase(f), lines(0), row(row_) {
    for (i64 k = 0; k < g.p.kernel; ++k) {
      const Shift u = shift_of(g.rows, f / g.cols.phases(), k * g.p.dilation_h - g.p.pad_h),
                  v = shift_of(g.cols, f % g.cols.phases(), k * g.p.dilation_w - g.p.pad_w);
      column[k] = {v.plane * plane + v.by, v.by, v.counts ? 0 : -1, static_cast<int>(k)};
      order[k] = -1;
      if (!u.counts) continue;
      i64 i = lines++;
      for (; i > 0 && (line[i - 1].plane > u.plane || (line[i - 1].plane == u.plane && line[i - 1].by > u.by)); --i)
        line[i] = line[i - 1];
      line[i] = {u.plane * g.cols.planes() * plane + (u.by - g.rows.lo) * row, u.by, static_cast<int>(u.plane),
                 static_cast<int>(k)};
    }
    for (i64 i = 0; i < lines; ++i) order[line[i].cell] = static_cast<int>(i);
  }

  static Unit make(const Line& l, const Line& c, int taps) {
    return {l.at + c.at, 0, taps, static_cast<int>(l.by), static_cast<int>(c.by)};
  }
  // Units of many taps and of few take turns: those wait for multiplications, these for loads. One that a tile may end
  // with comes last.
  static void arrange(Unit* unit, i64 n) {
    constexpr i64 most = 64;  // units of a window that is worth it
    if (n > most) return;
    const auto better = [](const Unit& a, const Unit& b, i64 wish) {
      return wish * taps_of(a.kind) > wish * taps_of(b.kind);
    };
    i64 last = -1;
    for (i64 i = 0; i < n; ++i)
      if (may_end(unit[i].kind) && (last < 0 || better(unit[i], unit[last], 1))) last = i;
    if (last >= 0) swap(unit[last], unit[--n]);
    for (i64 i = 0; i < n; ++i) {
      i64 best = i;
      for (i64 j = i + 1; j < n; ++j)
        if (better(unit[j], unit[best], i % 2 ? -1 : 1)) best = j;
      swap(unit[i], unit[best]);
    }
  }
  static void swap(Unit& a, Unit& b) {
    const Unit c = a;
    a = b;
    b = c;
  }

  // `slot_at`: kernel x kernel. A cell that comes twice is a unit of its own each time.
  void find(const UnitList& l, i64 set, int* slot_at) const {
    const i64 e = l.index(set, phase), k = g.p.kernel;
    Unit* const unit = l.unit + e * l.taps;
    int* const slot = l.slot + e * l.taps;
    std::uint64_t rows[kMostRows] = {};
    i64 units = 0;
    int taps = 0;
    for (i64 t = 0; t < l.taps; ++t) {
      const i64 cell = g.p.cells[set * l.taps + t];
      if (cell < 0 || cell >= k * k) continue;
      const i64 u = cell / k, v = cell - u * k;
      if (order[u] < 0 || column[v].plane < 0) continue;
      const std::uint64_t bit = std::uint64_t(1) << order[u];
      if (rows[v] & bit) {
        unit[units++] = make(line[order[u]], column[v], taps);
        slot[taps++] = static_cast<int>(t);
        continue;
      }
      rows[v] |= bit;
      slot_at[v * kMostRows + order[u]] = static_cast<int>(t);
    }
    for (i64 v = 0; v < k; ++v)
      for (std::uint64_t left = rows[v]; left;) {
        int i = __builtin_ctzll(left);
        const Line& first = line[i];
        Unit& one = unit[units++] = make(first, column[v], taps);
        for (i64 d = 0;;) {
          if (d) one.kind |= 1 << (d - 1);
          slot[taps++] = slot_at[v * kMostRows + i];
          left &= left - 1;
          if (!left) break;
          i = __builtin_ctzll(left);
          d = line[i].by - first.by;
          if (line[i].plane != first.plane || d > kDeep || taps_of(one.kind) == kUnitTaps) break;
        }
      }
    l.count[e] = units;
    for (; taps < l.taps; ++taps) slot[taps] = 0;
  }
};

inline UnitList take_units(const Plan& g, Arena& a) {
  UnitList l{g.p.taps, g.phases(), nullptr, nullptr, nullptr};
  const i64 lists = g.p.sets * l.phases;
  l.unit = a.take<Unit>(lists * l.taps);
  l.count = a.take<i64>(lists);
  l.slot = a.take<int>(lists * l.taps);
  return l;
}
// Called by every thread of a team.
inline void find_units(const Plan& g, const UnitList& l, i64 plane, i64 row, bool arranged) {
  int slot_at[kMostRows * kMostRows];
  for (i64 f = 0; f < l.phases; ++f) {
    const UnitFinder finder(g, f, plane, row);
#pragma omp for schedule(static)
    for (i64 set = 0; set < g.p.sets; ++set) {
      const i64 e = l.index(set, f);
      finder.find(l, set, slot_at);
      if (arranged) UnitFinder::arrange(l.unit + e * l.taps, l.count[e]);
    }
  }
}

#define LK_UNIT_KINDS(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(8) M(9) M(10) M(12)

// The rows of a tile. Past: past the caches, whole vectors only.
template <class A, int TH, class V>
LK_INLINE void store_rows(A* out, i64 row, const V (&acc)[TH], bool past) {
  if constexpr (sizeof(V) == kVecBytes)
    if (past) {
#pragma GCC unroll 32
      for (int r = 0; r < TH; ++r, out += row) vstream(out, acc[r]);
      return;
    }
#pragma GCC unroll 32
  for (int r = 0; r < TH; ++r, out += row) __builtin_memcpy(out, &acc[r], sizeof(V));
}

// Adds up each tap's chains of sums, a power of two of them.
template <class A, int Taps, int Chains, class V>
LK_INLINE void add_chains(A* sums, V (&acc)[Taps][Chains]) {
#pragma GCC unroll 8
  for (int t = 0; t < Taps; ++t, sums += kLanes<A>) {
#pragma GCC unroll 4
    for (int c = Chains / 2; c; c /= 2)
#pragma GCC unroll 2
      for (int i = 0; i < c; ++i) acc[t][i] += acc[t][i + c];
    vstore(sums, vload(sums) + acc[t][0]);
  }
}

template <class A>
struct PlaneTile {
  const Unit *unit, *end;
  i64 row, out_row;  // elements from one row to the next
  const A* weights;  // in the units' order
  A init;
  bool past;  // the caches
};

template <int Kind, int TH, class A>
LK_INLINE void plane_unit(Vec<A> (&acc)[TH], const A* x, i64 row, const A* weights) {
  constexpr int depth = depth_of(Kind), taps = taps_of(Kind);
  Vec<A> k[taps];
#pragma GCC unroll 8
  for (int t = 0; t < taps; ++t) k[t] = every(weights[t]);
#pragma GCC unroll 32
  for (int r = 0; r < TH + depth; ++r, x += row) {
    LK_OPAQUE(x);
    Vec<A> v = vload(x);
    if (taps > 1) LK_KEEP(v);
    int t = 0;
#pragma GCC unroll 8
    for (int d = 0; d <= depth; ++d) {
      if (!has_tap(Kind, d)) continue;
      if (r >= d && r - d < TH) acc[r - d] = vfma(v, k[t], acc[r - d]);
      ++t;
    }
  }
}

template <class A, int TH>
__attribute__((noinline)) void plane_tile(const PlaneTile<A>& a, const A* x, A* out) {
  Vec<A> acc[TH];
#pragma GCC unroll 16
  for (int r = 0; r < TH; ++r) acc[r] = every(a.init);
  for (const Unit *u = a.unit, *end = a.end; u != end; ++u) {
    const A *const at = x + u->at, *const weights = a.weights + u->first;
    switch (u->kind) {
#define LK_KIND(kind)                              \
  case kind:                                       \
    plane_unit<kind, TH>(acc, at, a.row, weights); \
    break;
      LK_UNIT_KINDS(LK_KIND)
#undef LK_KIND
    }
  }
  store_rows(out, a.out_row, acc, a.past);
}

// Rows of sums of products: g of TH rows at one vector of columns, with x of every tap.
template <class A>
struct PlaneSums {
  const Unit *unit, *end;
  i64 row, g_row;
  A* sums;  // a vector each tap, in the units' order
};

template <int Kind, int TH, class A>
LK_INLINE void plane_unit_sums(const Vec<A> (&g)[TH], const A* x, i64 row, A* sums) {
  constexpr int depth = depth_of(Kind), taps = taps_of(Kind);
  // Chains of sums, as many as keep the multiply-adds busy.
  constexpr int chains = taps == 1 ? 4 : taps == 2 || TH > 8 ? 2 : 1;
  Vec<A> acc[taps][chains];
#pragma GCC unroll 8
  for (int t = 0; t < taps; ++t)
#pragma GCC unroll 4
    for (int c = 0; c < chains; ++c) acc[t][c] = Vec<A>{};
#pragma GCC unroll 32
  for (int r = 0; r < TH + depth; ++r, x += row) {
    LK_OPAQUE(x);
    Vec<A> v = vload(x);
    if (taps > 1) LK_KEEP(v);
    int t = 0;
#pragma GCC unroll 8
    for (int d = 0; d <= depth; ++d) {
      if (!has_tap(Kind, d)) continue;
      if (r >= d && r - d < TH) acc[t][r % chains] = vfma(v, g[r - d], acc[t][r % chains]);
      ++t;
    }
  }
  add_chains(sums, acc);
}

template <class A, int TH>
__attribute__((noinline)) void plane_sums(const PlaneSums<A>& a, const A* x, const A* from) {
  Vec<A> g[TH];
#pragma GCC unroll 16
  for (int r = 0; r < TH; ++r, from += a.g_row) g[r] = vload(from);
  for (const Unit *u = a.unit, *end = a.end; u != end; ++u) {
    const A* const at = x + u->at;
    A* const sums = a.sums + u->first * kLanes<A>;
    switch (u->kind) {
#define LK_KIND(kind)                              \
  case kind:                                       \
    plane_unit_sums<kind, TH>(g, at, a.row, sums); \
    break;
      LK_UNIT_KINDS(LK_KIND)
#undef LK_KIND
    }
  }
}

}  // namespace rsdc
}  // namespace
