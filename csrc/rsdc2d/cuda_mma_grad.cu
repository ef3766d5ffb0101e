#include "rsdc2d/cuda_launch.h"
#include "rsdc2d/cuda_mma_grad.cuh"

namespace lk::rsdc2d::cuda {
namespace {

template <class T>
using Square = MmaGrad<T, 128, 128, 64, 64, 4, 2>;
template <class T>
using Narrow = MmaGrad<T, 64, 128, 32, 64, 4, 3>;

// Whether 128 filters a tile compute no more than 64 do.
bool square(const Params& p) { return ceil_div(p.co / p.groups, 64) % 2 == 0; }

// Tiles of filters and of columns in a group.
struct Tiles {
  i64 filters, columns;
};
Tiles tiles_of(const Params& p) {
  using S = Square<bf16>;
  const i64 part = p.ci / p.groups, each = p.co / p.groups;
  return {ceil_div(each, square(p) ? S::kM : S::kM / 2), ceil_div(part * p.taps, S::kN)};
}

template <class K>
int run(const Params& p, void* stream, const void* g, const void* x, void* work) {
  const Tiles t = tiles_of(p);
  const i64 pixels = p.n * p.ho * p.wo, parts = mma_parts(p);
  MmaGradArgs a{problem_of(p),
                static_cast<const u16*>(x),
                static_cast<const u16*>(g),
                static_cast<float*>(work),
                weights_of(p),
                pixels,
                ceil_div(ceil_div(pixels, parts), K::kPixels) * K::kPixels,
                static_cast<int>(t.filters),
                static_cast<int>(t.columns),
                static_cast<int>(kMmaPixels / (p.ho * p.wo)),
                static_cast<int>(kMmaPixels % (p.ho * p.wo) / p.wo),
                static_cast<int>(kMmaPixels % p.wo)};
  if (a.a_part > kMmaSize) return kUnsupported;
  return launch<K>("mma_grad", {p.groups * t.filters * t.columns, static_cast<int>(parts)}, K::shared_bytes(), stream,
                   a);
}

template <class T>
int by_filters(const Params& p, void* stream, const void* g, const void* x, void* work) {
  return square(p) ? run<Square<T>>(p, stream, g, x, work) : run<Narrow<T>>(p, stream, g, x, work);
}

}  // namespace

i64 mma_parts(const Params& p) {
  const Tiles t = tiles_of(p);
  const i64 steps = ceil_div(p.n * p.ho * p.wo, Square<bf16>::kPixels), most = ceil_div(steps, 4);
  i64 parts = kPrograms / (p.groups * t.filters * t.columns);
  parts = parts < 1 ? 1 : parts > most ? most : parts;
  return ceil_div(steps, ceil_div(steps, parts));
}

int mma_grad(const Params& p, void* stream, const void* g, const void* x, void* work) {
  return p.dtype == DType::bf16 ? by_filters<bf16>(p, stream, g, x, work) : by_filters<f16>(p, stream, g, x, work);
}

}  // namespace lk::rsdc2d::cuda
