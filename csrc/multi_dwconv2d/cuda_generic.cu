#include "lk/simt_entry.cuh"
#include "multi_dwconv2d/cuda_generic.cuh"
#include "multi_dwconv2d/cuda_launch.h"

namespace lk::multi_dwconv2d::cuda {
namespace {

template <class T>
int run_fwd(const Params& p, void* stream, const void* x, const void* w, const void* bias, void* y) {
  using K = GenericFwd<T>;
  typename K::Args a{problem_of(p), static_cast<const T*>(x), static_cast<const T*>(w), static_cast<const T*>(bias),
                     static_cast<T*>(y)};
  return launch<K>("generic_fwd", {ceil_div(p.n * p.c * p.ho * p.wo, K::kThreads)}, 0, stream, a);
}

template <class T>
int run_bwd_x(const Params& p, void* stream, const void* g, const void* w, void* gx) {
  using K = GenericBwdX<T>;
  typename K::Args a{problem_of(p), static_cast<const T*>(g), static_cast<const T*>(w), static_cast<T*>(gx)};
  return launch<K>("generic_bwd_x", {ceil_div(p.n * p.c * p.h * p.w, K::kThreads)}, 0, stream, a);
}

template <class T>
int run_bwd_w(const Params& p, void* stream, const void* g, const void* x, void* work) {
  using K = GenericBwdW<T>;
  const i64 parts = generic_parts(p);
  typename K::Args a{problem_of(p), static_cast<const T*>(g),   static_cast<const T*>(x), static_cast<Acc<T>*>(work),
                     weights_of(p), ceil_div(p.n * p.ho, parts)};
  i64 blocks = 0;
  for (int m = 0; m < a.p.branches; ++m) blocks += K::blocks(a.p, m);
  return launch<K>("generic_bwd_w", {blocks, static_cast<int>(parts)}, K::shared_bytes(), stream, a);
}

template <class T>
int run_sum(const Params& p, void* stream, const void* work, i64 parts, void* gw) {
  using K = SumParts<T>;
  typename K::Args a{static_cast<const Acc<T>*>(work), static_cast<T*>(gw), weights_of(p), static_cast<int>(parts)};
  return launch<K>("sum_parts", {ceil_div(a.weights, K::kThreads)}, 0, stream, a);
}

}  // namespace

int generic_fwd(const Params& p, void* stream, const void* x, const void* w, const void* bias, void* y) {
  LK_BY_DTYPE(run_fwd, p, stream, x, w, bias, y);
}

int generic_bwd_x(const Params& p, void* stream, const void* g, const void* w, void* gx) {
  LK_BY_DTYPE(run_bwd_x, p, stream, g, w, gx);
}

i64 generic_parts(const Params& p) {
  using K = GenericBwdW<float>;
  const Problem q = problem_of(p);
  i64 blocks = 0;
  for (int m = 0; m < q.branches; ++m) blocks += K::blocks(q, m);
  const i64 rows = p.n * p.ho, most = ceil_div(rows, 4 * K::kWarps);
  const i64 parts = kPrograms / blocks;
  return ceil_div(rows, share(rows, parts, most));
}

int generic_bwd_w(const Params& p, void* stream, const void* g, const void* x, void* work) {
  LK_BY_DTYPE(run_bwd_w, p, stream, g, x, work);
}

int sum_parts(const Params& p, void* stream, const void* work, i64 parts, void* gw) {
  LK_BY_DTYPE(run_sum, p, stream, work, parts, gw);
}

}  // namespace lk::multi_dwconv2d::cuda
