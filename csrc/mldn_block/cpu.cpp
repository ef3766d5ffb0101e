// Compiled once for each instruction set, with LK_ISA naming it.
#include "lk/entry.h"
#include "mldn_block/backward.h"
#include "mldn_block/infer.h"

namespace {

using namespace mldn;

int fwd(const Params& p, const Inputs& in, const Outputs& out) {
  switch (p.dtype) {
    case DType::f32:
      return forward<float>(p, in, out);
    case DType::f64:
      return forward<double>(p, in, out);
    default:
      return unsupported;
  }
}
int infer_(const Params& p, const Inputs& in, void* y) {
  switch (p.dtype) {
    case DType::f32:
      return infer<float>(p, in, y);
    case DType::f64:
      return infer<double>(p, in, y);
    default:
      return unsupported;
  }
}
int bwd(const Params& p, const Inputs& in, const Outputs& out, const Gradients& grad) {
  switch (p.dtype) {
    case DType::f32:
      return backward<float>(p, in, out, grad);
    case DType::f64:
      return backward<double>(p, in, out, grad);
    default:
      return unsupported;
  }
}

}  // namespace

namespace lk::mldn_block {
extern const Table LK_CAT(table_, LK_ISA);
const Table LK_CAT(table_, LK_ISA) = {fwd, infer_, bwd};
}  // namespace lk::mldn_block
