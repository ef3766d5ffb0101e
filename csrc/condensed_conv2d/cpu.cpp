// Compiled once for each instruction set, with LK_ISA naming it.
#include "condensed_conv2d/nchw.h"
#include "condensed_conv2d/nhwc.h"

namespace {

using namespace condensed;

template <class T>
int fwd_as(const Params& p, const void* x, const void* w, const void* scale, const void* shift, void* y) {
  for (i64 i = 0; i < p.groups * p.picked; ++i)
    if (p.index[i] < 0 || p.index[i] >= p.c) return bad_index;
  const auto run = p.layout == Layout::nchw ? nchw_fwd<T> : nhwc_fwd<T>;
  return run(p, static_cast<const T*>(x), static_cast<const T*>(w), static_cast<const Acc<T>*>(scale),
             static_cast<const Acc<T>*>(shift), static_cast<T*>(y));
}

int fwd(const Params& p, const void* x, const void* w, const void* scale, const void* shift, void* y) {
  switch (p.dtype) {
    case DType::f32:
      return fwd_as<float>(p, x, w, scale, shift, y);
    case DType::f64:
      return fwd_as<double>(p, x, w, scale, shift, y);
    case DType::bf16:
      return fwd_as<bf16>(p, x, w, scale, shift, y);
    case DType::f16:
      return fwd_as<f16>(p, x, w, scale, shift, y);
  }
  return unsupported;
}

}  // namespace

namespace lk::condensed_conv2d {
extern const Table LK_CAT(table_, LK_ISA);
const Table LK_CAT(table_, LK_ISA) = {fwd};
}  // namespace lk::condensed_conv2d
