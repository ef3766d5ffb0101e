#include "condensed_conv2d/cuda_launch.h"
#include "condensed_conv2d/cuda_product.cuh"
#include "lk/simt_entry.cuh"

namespace lk::condensed_conv2d::cuda {
namespace {

template <class T, int kN>
int run(const Params& call, void* stream, const void* x, const void* w, const void* scale, const void* shift, void* y) {
  using K = ProductFwd<T, kN>;
  using E = typename K::E;
  typename K::Args a{};
  Problem& p = a.p = problem_of(call);
  p.x.vector = aligned(p, p.x, x, sizeof(E));
  p.y.vector = aligned(p, p.y, y, sizeof(E));
  a.x = static_cast<const E*>(x);
  a.w = static_cast<const E*>(w);
  a.scale = static_cast<const Acc<T>*>(scale);
  a.shift = static_cast<const Acc<T>*>(shift);
  a.y = static_cast<E*>(y);
  const i64 tiles = ceil_div(p.pixels, K::kM);
  spread(p, tiles, a.together, a.splits);
  while (1 << a.bits < kN && 1 << a.bits < p.each) ++a.bits;
  return launch<K>(K::kTensor ? "mma_fwd" : "tile_fwd", {tiles * a.splits}, K::shared_bytes(), stream, a);
}

// Filters of a tile: few cost less where a group has few.
template <class T>
int by_filters(const Params& p, void* stream, const void* x, const void* w, const void* scale, const void* shift,
               void* y) {
  if constexpr (sizeof(T) == 2)
    if (p.co / p.groups > 32) return run<T, 64>(p, stream, x, w, scale, shift, y);
  return run<T, 32>(p, stream, x, w, scale, shift, y);
}

}  // namespace

int fwd(const Params& p, void* stream, const void* x, const void* w, const void* scale, const void* shift, void* y) {
  LK_BY_DTYPE(by_filters, p, stream, x, w, scale, shift, y);
}

}  // namespace lk::condensed_conv2d::cuda
