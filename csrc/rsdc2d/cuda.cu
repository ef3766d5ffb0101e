#include "rsdc2d/cuda.h"
#include "rsdc2d/cuda_launch.h"

namespace lk::rsdc2d::cuda {

Kernel kernel_of(const Params&, Pass) { return Kernel::generic; }

i64 work_size(const Params& p, Pass pass) {
  const i64 sum = p.dtype == DType::f64 ? 8 : 4;
  return pass == Pass::bwd_w ? generic_parts(p) * weights_of(p) * sum : 0;
}

int fwd(const Params& p, void* stream, const void* x, const void* w, const void* bias, void*, void* y) {
  return generic_fwd(p, stream, x, w, bias, y);
}

int bwd_x(const Params& p, void* stream, const void* g, const void* w, void*, void* gx) {
  return generic_bwd_x(p, stream, g, w, gx);
}

int bwd_w(const Params& p, void* stream, const void* g, const void* x, void* work, void* gw) {
  const int error = generic_bwd_w(p, stream, g, x, work);
  return error ? error : sum_parts(p, stream, work, generic_parts(p), gw);
}

}  // namespace lk::rsdc2d::cuda
