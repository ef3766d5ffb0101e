// Maps of the second convolution as lines with zeros around them, so that a tap is a constant distance in memory.
#pragma once
#include "mldn_block/panel.h"

namespace {
namespace mldn {

using rsdc::Term;
using rsdc::Walk;

// Place (i, j) of a staged map lies at before + (i + pad) * pitch + j; outputs are made at i * pitch + j.
template <class A>
struct Maps {
  static constexpr i64 V = kLanes<A>;
  i64 h, w, pad, pitch, flat, map;  // flat: elements of an output; map: of a staged input

  explicit Maps(const Params& p)
      : h(p.h),
        w(p.w),
        pad(p.kernel / 2),
        pitch(p.w + p.kernel / 2),
        flat(round_up((p.h - 1) * pitch + p.w, V)),
        map(round_up(flat + 2 * pad * pitch + 2 * pad, V) + V) {}
  i64 vectors() const { return flat / V; }
  i64 origin() const { return pad + pad * pitch; }
  // Where a tap at (dy, dx) reads, relative to the output's place.
  i64 at(i64 dy, i64 dx) const { return origin() + dy * pitch + dx; }
};

// Terms of the taps of each set of one path; backward: of the input's gradient. Cells outside of the window read
// nothing.
template <class A>
void make_terms(const Block& b, const Maps<A>& maps, const i64* cells, bool backward, Term* term, i64* count) {
  const i64 k = b.p.kernel, sign = backward ? -1 : 1;
  for (i64 set = 0; set < b.sets(); ++set) {
    i64 n = 0;
    for (i64 t = 0; t < b.p.taps; ++t) {
      const i64 cell = cells ? cells[set * b.p.taps + t] : t;
      if (cell < 0 || cell >= k * k) continue;
      const i64 dy = cell / k - maps.pad, dx = cell % k - maps.pad;
      term[set * b.p.taps + n++] = {maps.at(sign * dy, sign * dx), static_cast<int>(t), static_cast<int>(dy),
                                    static_cast<int>(dx)};
    }
    count[set] = n;
  }
}

// Vectors of pixels of a tile of so many outputs.
template <class A>
constexpr int kLine(int outputs) {
  return sizeof(A) == 8 ? 2 : rsdc::kRun[outputs];
}
template <class A, int R, int P>
constexpr rsdc::SparseFn<A> line_tile() {
  if constexpr (P <= kLine<A>(R))
    return rsdc::sparse_tile<A, R, P>;
  else
    return nullptr;
}
template <class A>
rsdc::SparseFn<A> line_fn(i64 outputs, i64 vectors) {
#define LK_T(r)                                                                                      \
  {                                                                                                  \
    nullptr, line_tile<A, r, 1>(), line_tile<A, r, 2>(), line_tile<A, r, 3>(), line_tile<A, r, 4>(), \
        line_tile<A, r, 5>(), line_tile<A, r, 6>(), line_tile<A, r, 7>(), line_tile<A, r, 8>()       \
  }
  static constexpr rsdc::SparseFn<A> fn[3][9] = {LK_T(1), LK_T(2), LK_T(4)};
#undef LK_T
  return fn[outputs / 2][vectors];
}

template <class A>
void convolve(int outputs, const rsdc::SparseTile<A>& tile, const A* x, A* out, i64 vectors) {
  for (i64 tiles = ceil_div(vectors, kLine<A>(outputs)); tiles > 0; --tiles) {
    const i64 n = ceil_div(vectors, tiles);
    line_fn<A>(outputs, n)(tile, x, out);
    x += n * kLanes<A>;
    out += n * kLanes<A>;
    vectors -= n;
  }
}

// How many outputs with the same taps are made together.
inline int together(i64 outputs) { return outputs >= 4 ? 4 : outputs >= 2 ? 2 : 1; }

// relu((z - mean) * scale + beta) of one map into a staged one.
template <class T>
void stage_active(const T* z, Acc<T> mean, Acc<T> scale, Acc<T> beta, const Maps<Acc<T>>& maps, Acc<T>* to) {
  using A = Acc<T>;
  constexpr i64 V = kLanes<A>;
  to += maps.origin();
  for (i64 i = 0; i < maps.h; ++i, to += maps.pitch, z += maps.w)
    for (i64 j = 0; j < maps.w; j += V) {
      const i64 n = maps.w - j;
      store_line<A>(to + j, relu(vfma(load_line(z + j, n) - every(mean), every(scale), every(beta))), n);
    }
}

// Mean and sum of squared distances from it, of n values: two passes.
template <class T>
void moments(const T* x, i64 n, double* mean, double* squares) {
  using A = Acc<T>;
  constexpr i64 V = kLanes<A>;
  Vec<A> s{}, q{}, rest{};
  for (i64 i = 0; i < n; i += V) s += load_line(x + i, n - i);
  const A about = rsdc::sum_lanes<A>(s) / static_cast<A>(n);
  for (i64 i = 0; i < n; i += V) {
    Vec<A> d = load_line(x + i, n - i) - every(about);
    if (i + V > n) d = head<A>(d, n - i);
    rest += d;
    q = vfma(d, d, q);
  }
  const double off = static_cast<double>(rsdc::sum_lanes<A>(rest)) / static_cast<double>(n);
  *mean = static_cast<double>(about) + off;
  *squares = static_cast<double>(rsdc::sum_lanes<A>(q)) - off * off * static_cast<double>(n);
}

// Mean and variance of everything from those of `parts` equal parts, `step` apart.
inline void merge_moments(const double* part, i64 parts, i64 step, i64 n, double* mean, double* variance) {
  double m = 0, sum = 0;
  for (i64 i = 0; i < parts; ++i) {
    const double d = part[i * step] - m, k = static_cast<double>(i + 1);
    m += d / k;
    sum += part[i * step + 1] + d * d * static_cast<double>(n) * (k - 1) / k;
  }
  *mean = m;
  *variance = sum / (static_cast<double>(n) * static_cast<double>(parts));
}

}  // namespace mldn
}  // namespace
