#include "rsdc2d/cuda_launch.h"
#include "rsdc2d/cuda_product_grad.cuh"

namespace lk::rsdc2d::cuda {
namespace {

template <class T>
using Square = ProductGrad<T, 128, 128, 64, 64, 4, 2>;
template <class T>
using Narrow = ProductGrad<T, 64, 128, 32, 64, 4, 3>;
template <class T>
using Plain = ProductGrad<T, 64, 64, 32, 32, 3, sizeof(T) == 8 ? 1 : 3>;

bool half(const Params& p) { return p.dtype == DType::bf16 || p.dtype == DType::f16; }

// Whether 128 filters a tile compute no more than 64 do.
bool square(const Params& p) { return half(p) && ceil_div(p.co / p.groups, 64) % 2 == 0; }

// Tiles of filters and of columns in a group.
struct Tiles {
  i64 filters, columns;
};
Tiles tiles_of(const Params& p) {
  return {ceil_div(p.co / p.groups, square(p) ? 128 : 64), ceil_div(p.ci / p.groups * p.taps, half(p) ? 128 : 64)};
}

template <class K, class T>
int run(const Params& p, void* stream, const void* g, const void* x, void* work) {
  const Tiles t = tiles_of(p);
  const i64 pixels = p.n * p.ho * p.wo, parts = product_parts(p);
  using E = typename K::E;
  typename K::Args a{problem_of(p),
                     static_cast<const E*>(x),
                     static_cast<const E*>(g),
                     static_cast<Acc<T>*>(work),
                     weights_of(p),
                     pixels,
                     ceil_div(ceil_div(pixels, parts), K::kPixels) * K::kPixels,
                     static_cast<int>(t.filters),
                     static_cast<int>(t.columns),
                     static_cast<int>(kStepPixels / (p.ho * p.wo)),
                     static_cast<int>(kStepPixels % (p.ho * p.wo) / p.wo),
                     static_cast<int>(kStepPixels % p.wo)};
  if (a.a_part > kSize) return kUnsupported;
  return launch<K>(K::kTensor ? "mma_grad" : "tile_grad", {p.groups * t.filters * t.columns, static_cast<int>(parts)},
                   K::shared_bytes(), stream, a);
}

template <class T>
int by_filters(const Params& p, void* stream, const void* g, const void* x, void* work) {
  return square(p) ? run<Square<T>, T>(p, stream, g, x, work) : run<Narrow<T>, T>(p, stream, g, x, work);
}

}  // namespace

i64 product_parts(const Params& p) {
  const Tiles t = tiles_of(p);
  const i64 steps = ceil_div(p.n * p.ho * p.wo, kStepPixels), most = ceil_div(steps, 4);
  const i64 parts = kPrograms / (p.groups * t.filters * t.columns);
  return ceil_div(steps, share(steps, parts, most));
}

int product_grad(const Params& p, void* stream, const void* g, const void* x, void* work) {
  switch (p.dtype) {
    case DType::f32:
      return run<Plain<float>, float>(p, stream, g, x, work);
    case DType::f64:
      return run<Plain<double>, double>(p, stream, g, x, work);
    case DType::bf16:
      return by_filters<bf16>(p, stream, g, x, work);
    case DType::f16:
      return by_filters<f16>(p, stream, g, x, work);
  }
  return kUnsupported;
}

}  // namespace lk::rsdc2d::cuda
