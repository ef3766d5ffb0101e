// The launchers of condensed_conv2d behind a C interface.
#include "bindings/condensed_conv2d_plan.h"
#include "condensed_conv2d/cuda.h"
#include "lk/simt.cuh"

using lk::i64;
using lk::condensed_conv2d::Plan;
namespace cuda = lk::condensed_conv2d::cuda;

extern "C" {

void* lk_condensed_plan(const i64* head) { return new Plan({head, head + 12}); }

int lk_condensed_fwd(const void* plan, const void* x, const void* w, const void* scale, const void* shift,
                     const void* index, void* y) {
  return cuda::fwd(static_cast<const Plan*>(plan)->with(index, 1), nullptr, x, w, scale, shift, y);
}

int lk_condensed_bwd(const void* plan, const void* g, const void* x, const void* w, const void* scale,
                     const void* shift, const void* index, const i64* order, const i64* bounds, void* work, void* gx,
                     void* gw, void* gscale, void* gshift) {
  return cuda::bwd(static_cast<const Plan*>(plan)->with(index, 1), nullptr,
                   {g, x, w, scale, shift, order, bounds, work}, {gx, gw, gscale, gshift});
}

i64 lk_condensed_work_size(const void* plan) { return cuda::work_size(static_cast<const Plan*>(plan)->p); }

}  // extern "C"
