// The definition, tap by tap, for any shape: what fast kernels hand over to when a case is not theirs.
#pragma once
#include "lk/vec.h"
#include "multi_dwconv2d/params.h"

namespace {

using namespace lk;
using namespace lk::multi_dwconv2d;

constexpr i64 kGrain = 32768;  // multiply-adds below which no team of threads is opened

inline i64 taps_of(const Params& p) {
  i64 k = 0;
  for (i64 m = 0; m < p.num_branches; ++m) k += p.branches[m].kernel * p.branches[m].kernel;
  return k;
}

inline bool parallel(const Params& p) { return p.threads > 1 && p.n * p.c * p.ho * p.wo * taps_of(p) > kGrain; }

// Sum over one branch's window around output (i, j) of channel c (counted within the branch).
template <class T>
inline Acc<T> window(const Params& p, const Branch& b, const T* x, const T* w, i64 n, i64 c, i64 i, i64 j) {
  Acc<T> sum = 0;
  const T* k = w + b.weight_start + c * b.kernel * b.kernel;
  for (i64 u = 0; u < b.kernel; ++u) {
    const i64 r = i * p.stride_h + (u - b.kernel / 2) * b.dilation;
    if (r < 0 || r >= p.h) continue;
    for (i64 v = 0; v < b.kernel; ++v) {
      const i64 q = j * p.stride_w + (v - b.kernel / 2) * b.dilation;
      if (q < 0 || q >= p.w) continue;
      sum += to_acc(k[u * b.kernel + v]) * to_acc(x[offset(p.x, n, b.in_start + c, r, q)]);
    }
  }
  return sum;
}

template <class T>
int generic_fwd(const Params& p, const T* x, const T* w, const T* bias, T* y) {
  const bool par = parallel(p);
#pragma omp parallel for schedule(static) num_threads(p.threads) if (par)
  for (i64 ni = 0; ni < p.n * p.ho; ++ni) {
    const i64 n = ni / p.ho, i = ni % p.ho;
    for (i64 m = 0; m < p.num_branches; ++m) {
      const Branch& b = p.branches[m];
      const i64 first = p.combine == Combine::concat ? m : 0;
      if (p.combine == Combine::add && m + 1 < p.num_branches) continue;
      for (i64 c = 0; c < b.channels; ++c)
        for (i64 j = 0; j < p.wo; ++j) {
          Acc<T> sum = 0;
          for (i64 q = first; q <= m; ++q) sum += window(p, p.branches[q], x, w, n, c, i, j);
          const i64 o = b.out_start + c;
          y[offset(p.y, n, o, i, j)] = from_acc<T>(bias ? sum + to_acc(bias[o]) : sum);
        }
    }
  }
  return ok;
}

// Sum of the output gradients that branch m's weights meet: its own (concat), the one sum (add), its own and all
// later ones (cumulative).
template <class T>
inline Acc<T> gradient(const Params& p, const T* g, i64 m, i64 n, i64 c, i64 i, i64 j) {
  Acc<T> sum = 0;
  const i64 last = p.combine == Combine::cumulative ? p.num_branches - 1 : m;
  for (i64 q = m; q <= last; ++q) sum += to_acc(g[offset(p.y, n, p.branches[q].out_start + c, i, j)]);
  return sum;
}

template <class T>
int generic_bwd_x(const Params& p, const T* g, const T* w, T* gx) {
  const bool par = parallel(p);
#pragma omp parallel for schedule(static) num_threads(p.threads) if (par)
  for (i64 nr = 0; nr < p.n * p.h; ++nr) {
    const i64 n = nr / p.h, r = nr % p.h;
    for (i64 c = 0; c < p.c; ++c)
      for (i64 q = 0; q < p.w; ++q) {
        Acc<T> sum = 0;
        for (i64 m = 0; m < p.num_branches; ++m) {
          const Branch& b = p.branches[m];
          const i64 cc = c - b.in_start;
          if (cc < 0 || cc >= b.channels) continue;
          const T* k = w + b.weight_start + cc * b.kernel * b.kernel;
          for (i64 u = 0; u < b.kernel; ++u) {
            const i64 si = r - (u - b.kernel / 2) * b.dilation;
            if (si < 0 || si % p.stride_h || si / p.stride_h >= p.ho) continue;
            for (i64 v = 0; v < b.kernel; ++v) {
              const i64 sj = q - (v - b.kernel / 2) * b.dilation;
              if (sj < 0 || sj % p.stride_w || sj / p.stride_w >= p.wo) continue;
              sum += to_acc(k[u * b.kernel + v]) * gradient(p, g, m, n, cc, si / p.stride_h, sj / p.stride_w);
            }
          }
        }
        gx[offset(p.x, n, c, r, q)] = from_acc<T>(sum);
      }
  }
  return ok;
}

template <class T>
int generic_bwd_w(const Params& p, const T* g, const T* x, T* gw) {
  const bool par = parallel(p);
#pragma omp parallel for schedule(static) num_threads(p.threads) if (par)
  for (i64 c = 0; c < p.c; ++c)
    for (i64 m = 0; m < p.num_branches; ++m) {
      const Branch& b = p.branches[m];
      const i64 cc = c - b.in_start;
      if (cc < 0 || cc >= b.channels) continue;
      for (i64 u = 0; u < b.kernel; ++u)
        for (i64 v = 0; v < b.kernel; ++v) {
          Acc<T> sum = 0;
          for (i64 n = 0; n < p.n; ++n) {
            Acc<T> image = 0;
            for (i64 i = 0; i < p.ho; ++i) {
              const i64 r = i * p.stride_h + (u - b.kernel / 2) * b.dilation;
              if (r < 0 || r >= p.h) continue;
              for (i64 j = 0; j < p.wo; ++j) {
                const i64 q = j * p.stride_w + (v - b.kernel / 2) * b.dilation;
                if (q < 0 || q >= p.w) continue;
                image += gradient(p, g, m, n, cc, i, j) * to_acc(x[offset(p.x, n, c, r, q)]);
              }
            }
            sum += image;
          }
          gw[b.weight_start + (cc * b.kernel + u) * b.kernel + v] = from_acc<T>(sum);
        }
    }
  return ok;
}

}  // namespace
