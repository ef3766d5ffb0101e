#include "multi_dwconv2d/cuda.h"
#include "multi_dwconv2d/cuda_launch.h"

namespace lk::multi_dwconv2d::cuda {
namespace {

// What runs a pass. Tensor cores multiply by zeros that stand for no tap; so does the weight gradient's tile, with the
// zeros around both maps.
enum class Way { generic, tile, mma };

Way way(const Params& p, const Options& o, Pass pass) {
  if (!o.exact && mma_takes(p, pass)) return Way::mma;
  return tile_takes(p, pass) && !(o.exact && pass == Pass::bwd_w) ? Way::tile : Way::generic;
}

i64 parts(const Params& p, Way how) {
  return how == Way::mma ? mma_parts(p) : how == Way::tile ? tile_parts(p) : generic_parts(p);
}

}  // namespace

int fwd(const Params& p, const Options& o, const void* x, const void* w, const void* bias, void* y) {
  if (p.num_branches > kMaxBranches) return kUnsupported;
  const Way how = way(p, o, Pass::fwd);
  if (how == Way::mma) return mma_conv(p, o.stream, false, x, w, bias, y);
  if (how == Way::tile) return tile_conv(p, o.stream, false, x, w, bias, y);
  return generic_fwd(p, o.stream, x, w, bias, y);
}

int bwd_x(const Params& p, const Options& o, const void* g, const void* w, void* gx) {
  if (p.num_branches > kMaxBranches) return kUnsupported;
  const Way how = way(p, o, Pass::bwd_x);
  if (how == Way::mma) return mma_conv(p, o.stream, true, g, w, nullptr, gx);
  if (how == Way::tile) return tile_conv(p, o.stream, true, g, w, nullptr, gx);
  return generic_bwd_x(p, o.stream, g, w, gx);
}

i64 work_size(const Params& p, const Options& o) { return parts(p, way(p, o, Pass::bwd_w)) * weights_of(p); }

int bwd_w(const Params& p, const Options& o, const void* g, const void* x, void* work, void* gw) {
  if (p.num_branches > kMaxBranches) return kUnsupported;
  const Way how = way(p, o, Pass::bwd_w);
  const int error = how == Way::mma    ? mma_grad(p, o.stream, g, x, work)
                    : how == Way::tile ? tile_grad(p, o.stream, g, x, work)
                                       : generic_bwd_w(p, o.stream, g, x, work);
  return error ? error : sum_parts(p, o.stream, work, parts(p, how), gw);
}

const char* kernels(const Params& p, const Options& o, Pass pass) {
  const Way how = way(p, o, pass);
  return how == Way::mma ? "tensor cores" : how == Way::tile ? "tiles" : "generic";
}

}  // namespace lk::multi_dwconv2d::cuda
