#include "lk/simt_entry.cuh"
#include "rsdc2d/cuda_generic.cuh"
#include "rsdc2d/cuda_launch.h"

namespace lk::rsdc2d::cuda {
namespace {

template <class T>
int run_fwd(const Params& p, void* stream, const void* x, const void* w, const void* bias, void* y) {
  using K = GenericFwd<T>;
  typename K::Args a{problem_of(p), static_cast<const T*>(x), static_cast<const T*>(w), static_cast<const T*>(bias),
                     static_cast<T*>(y)};
  return launch<K>("generic_fwd", {ceil_div(K::threads(a.p), K::kThreads)}, 0, stream, a);
}

template <class T>
int run_bwd_x(const Params& p, void* stream, const void* g, const void* w, void* gx) {
  using K = GenericBwdX<T>;
  typename K::Args a{problem_of(p), static_cast<const T*>(g), static_cast<const T*>(w), static_cast<T*>(gx)};
  return launch<K>("generic_bwd_x", {ceil_div(K::threads(a.p), K::kThreads)}, 0, stream, a);
}

template <class T>
int run_bwd_w(const Params& p, void* stream, const void* g, const void* x, void* work) {
  using K = GenericBwdW<T>;
  const i64 parts = generic_parts(p);
  typename K::Args a{problem_of(p), static_cast<const T*>(g), static_cast<const T*>(x), static_cast<Acc<T>*>(work),
                     ceil_div(p.n * p.ho, parts)};
  return launch<K>("generic_bwd_w", {K::blocks(a.p), static_cast<int>(parts)}, K::shared_bytes(), stream, a);
}

template <class T>
int run_sum(const Params& p, void* stream, const void* work, i64 parts, void* gw) {
  using K = SumTaps<T>;
  typename K::Args a{static_cast<const Acc<T>*>(work), static_cast<T*>(gw),      weights_of(p),
                     static_cast<int>(parts),          static_cast<int>(p.taps), static_cast<int>(p.ci / p.groups)};
  return launch<K>("sum_taps", {ceil_div(a.weights, K::kThreads)}, 0, stream, a);
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
  const i64 rows = p.n * p.ho, most = ceil_div(rows, 4 * K::kWarps);
  const i64 parts = kPrograms / K::blocks(problem_of(p));
  return ceil_div(rows, share(rows, parts, most));
}

int generic_bwd_w(const Params& p, void* stream, const void* g, const void* x, void* work) {
  LK_BY_DTYPE(run_bwd_w, p, stream, g, x, work);
}

int sum_parts(const Params& p, void* stream, const void* work, i64 parts, void* gw) {
  LK_BY_DTYPE(run_sum, p, stream, work, parts, gw);
}

}  // namespace lk::rsdc2d::cuda
