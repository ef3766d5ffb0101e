#include "multi_dwconv2d/cuda.h"
#include "multi_dwconv2d/cuda_launch.h"

namespace lk::multi_dwconv2d::cuda {

int fwd(const Params& p, const Options& o, const void* x, const void* w, const void* bias, void* y) {
  if (p.num_branches > kMaxBranches) return kUnsupported;
  if (!o.exact && mma_takes(p, Pass::fwd)) return mma_conv(p, o.stream, false, x, w, bias, y);
  if (tile_takes(p, Pass::fwd)) return tile_conv(p, o.stream, false, x, w, bias, y);
  return generic_fwd(p, o.stream, x, w, bias, y);
}

int bwd_x(const Params& p, const Options& o, const void* g, const void* w, void* gx) {
  if (p.num_branches > kMaxBranches) return kUnsupported;
  if (!o.exact && mma_takes(p, Pass::bwd_x)) return mma_conv(p, o.stream, true, g, w, nullptr, gx);
  if (tile_takes(p, Pass::bwd_x)) return tile_conv(p, o.stream, true, g, w, nullptr, gx);
  return generic_bwd_x(p, o.stream, g, w, gx);
}

i64 work_size(const Params& p, const Options& o) {
  const i64 parts = !o.exact && mma_takes(p, Pass::bwd_w) ? mma_parts(p) : generic_parts(p);
  return parts * weights_of(p);
}

int bwd_w(const Params& p, const Options& o, const void* g, const void* x, void* work, void* gw) {
  if (p.num_branches > kMaxBranches) return kUnsupported;
  if (o.exact || !mma_takes(p, Pass::bwd_w)) return generic_bwd_w(p, o.stream, g, x, work, gw);
  const int error = mma_grad(p, o.stream, g, x, work);
  return error ? error : sum_parts(p, o.stream, work, mma_parts(p), gw);
}

const char* kernels(const Params& p, const Options& o, Pass pass) {
  if (!o.exact && mma_takes(p, pass)) return "mma";
  if (pass != Pass::bwd_w && tile_takes(p, pass)) return "tile";
  return "generic";
}

}  // namespace lk::multi_dwconv2d::cuda
