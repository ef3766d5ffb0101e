#include "rsdc2d/cuda.h"
#include "rsdc2d/cuda_launch.h"

namespace lk::rsdc2d::cuda {

static i64 parts(const Params& p) { return product_takes(p, Pass::bwd_w) ? product_parts(p) : generic_parts(p); }

Kernel kernel_of(const Params& p, Pass pass) {
  if (!product_takes(p, pass)) return Kernel::generic;
  return p.dtype == DType::bf16 || p.dtype == DType::f16 ? Kernel::tensor : Kernel::tiles;
}

i64 work_size(const Params& p, Pass pass) {
  const i64 sum = p.dtype == DType::f64 ? 8 : 4;
  if (pass == Pass::bwd_w) return parts(p) * weights_of(p) * sum;
  return product_takes(p, pass) ? weights_of(p) * (p.dtype == DType::f64 ? 8 : p.dtype == DType::f32 ? 4 : 2) : 0;
}

int fwd(const Params& p, void* stream, const void* x, const void* w, const void* bias, void* work, void* y) {
  if (product_takes(p, Pass::fwd)) return product_conv(p, stream, false, x, w, bias, work, y);
  return generic_fwd(p, stream, x, w, bias, y);
}

int bwd_x(const Params& p, void* stream, const void* g, const void* w, void* work, void* gx) {
  if (product_takes(p, Pass::bwd_x)) return product_conv(p, stream, true, g, w, nullptr, work, gx);
  return generic_bwd_x(p, stream, g, w, gx);
}

int bwd_w(const Params& p, void* stream, const void* g, const void* x, void* work, void* gw) {
  const int error =
      product_takes(p, Pass::bwd_w) ? product_grad(p, stream, g, x, work) : generic_bwd_w(p, stream, g, x, work);
  return error ? error : sum_parts(p, stream, work, parts(p), gw);
}

}  // namespace lk::rsdc2d::cuda
