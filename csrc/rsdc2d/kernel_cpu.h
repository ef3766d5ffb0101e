// The definition, tap by tap, for any shape: what fast kernels hand over to when a case is not theirs.
#pragma once
#include "lk/vec.h"
#include "rsdc2d/params.h"

namespace {
namespace rsdc {

using namespace lk;
using namespace lk::rsdc2d;

constexpr i64 kGrain = 32768;  // multiply-adds below which no team of threads is opened

inline i64 group_in(const Params& p) { return p.ci / p.groups; }
inline i64 group_out(const Params& p) { return p.co / p.groups; }
inline bool parallel(const Params& p) {
  return p.threads > 1 && p.n * p.ho * p.wo * p.co * group_in(p) * p.taps > kGrain;
}

// Where a tap reads, relative to its output's place; a cell outside of the window reads nothing.
struct Tap {
  i64 dy, dx;
  bool inside;
};
inline Tap tap_at(const Params& p, i64 set, i64 t) {
  const i64 cell = p.cells[set * p.taps + t];
  if (cell < 0 || cell >= p.kernel * p.kernel) return {0, 0, false};
  return {cell / p.kernel * p.dilation_h - p.pad_h, cell % p.kernel * p.dilation_w - p.pad_w, true};
}
inline i64 set_of(const Params& p, i64 o) { return p.sets == 1 ? 0 : p.sets == p.groups ? o / group_out(p) : o; }

template <class T>
int generic_fwd(const Params& p, const T* x, const T* w, const T* bias, T* y) {
  const bool par = parallel(p);
  const i64 gi = group_in(p), go = group_out(p);
#pragma omp parallel for schedule(static) num_threads(p.threads) if (par)
  for (i64 ni = 0; ni < p.n * p.ho; ++ni) {
    const i64 n = ni / p.ho, i = ni % p.ho;
    for (i64 o = 0; o < p.co; ++o)
      for (i64 j = 0; j < p.wo; ++j) {
        Acc<T> sum = bias ? to_acc(bias[o]) : Acc<T>(0);
        for (i64 t = 0; t < p.taps; ++t) {
          const Tap tap = tap_at(p, set_of(p, o), t);
          const i64 r = i * p.stride_h + tap.dy, q = j * p.stride_w + tap.dx;
          if (!tap.inside || r < 0 || r >= p.h || q < 0 || q >= p.w) continue;
          for (i64 c = 0; c < gi; ++c)
            sum += to_acc(w[(o * gi + c) * p.taps + t]) * to_acc(x[offset(p.x, n, o / go * gi + c, r, q)]);
        }
        y[offset(p.y, n, o, i, j)] = from_acc<T>(sum);
      }
  }
  return ok;
}

template <class T>
int generic_bwd_x(const Params& p, const T* g, const T* w, T* gx) {
  const bool par = parallel(p);
  const i64 gi = group_in(p), go = group_out(p);
#pragma omp parallel for schedule(static) num_threads(p.threads) if (par)
  for (i64 nr = 0; nr < p.n * p.h; ++nr) {
    const i64 n = nr / p.h, r = nr % p.h;
    for (i64 c = 0; c < p.ci; ++c)
      for (i64 q = 0; q < p.w; ++q) {
        Acc<T> sum = 0;
        for (i64 o = c / gi * go; o < (c / gi + 1) * go; ++o)
          for (i64 t = 0; t < p.taps; ++t) {
            const Tap tap = tap_at(p, set_of(p, o), t);
            const i64 i = r - tap.dy, j = q - tap.dx;
            if (!tap.inside || i < 0 || j < 0 || i % p.stride_h || j % p.stride_w) continue;
            if (i / p.stride_h >= p.ho || j / p.stride_w >= p.wo) continue;
            sum += to_acc(w[(o * gi + c % gi) * p.taps + t]) *
                   to_acc(g[offset(p.y, n, o, i / p.stride_h, j / p.stride_w)]);
          }
        gx[offset(p.x, n, c, r, q)] = from_acc<T>(sum);
      }
  }
  return ok;
}

template <class T>
int generic_bwd_w(const Params& p, const T* g, const T* x, T* gw) {
  const bool par = parallel(p);
  const i64 gi = group_in(p), go = group_out(p);
#pragma omp parallel for schedule(static) num_threads(p.threads) if (par)
  for (i64 o = 0; o < p.co; ++o)
    for (i64 c = 0; c < gi; ++c)
      for (i64 t = 0; t < p.taps; ++t) {
        const Tap tap = tap_at(p, set_of(p, o), t);
        Acc<T> sum = 0;
        for (i64 n = 0; n < p.n && tap.inside; ++n) {
          Acc<T> image = 0;
          for (i64 i = 0; i < p.ho; ++i) {
            const i64 r = i * p.stride_h + tap.dy;
            if (r < 0 || r >= p.h) continue;
            Acc<T> row = 0;
            for (i64 j = 0; j < p.wo; ++j) {
              const i64 q = j * p.stride_w + tap.dx;
              if (q < 0 || q >= p.w) continue;
              row += to_acc(g[offset(p.y, n, o, i, j)]) * to_acc(x[offset(p.x, n, o / go * gi + c, r, q)]);
            }
            image += row;
          }
          sum += image;
        }
        gw[(o * gi + c) * p.taps + t] = from_acc<T>(sum);
      }
  return ok;
}

}  // namespace rsdc
}  // namespace
