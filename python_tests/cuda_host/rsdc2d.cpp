// The launchers of rsdc2d behind a C interface.
#include "bindings/rsdc2d_plan.h"
#include "lk/simt.cuh"
#include "rsdc2d/cuda.h"

using lk::i64;
using lk::rsdc2d::Params;
using lk::rsdc2d::Pass;
using lk::rsdc2d::Plan;
namespace cuda = lk::rsdc2d::cuda;

namespace {

Params params(const void* plan, const void* cells) { return static_cast<const Plan*>(plan)->with(cells, 1); }

}  // namespace

extern "C" {

void* lk_rsdc_plan(const i64* head, const i64* x, const i64* y) {
  return new Plan({head, head + 20}, {x, x + 4}, {y, y + 4});
}

int lk_rsdc_fwd(const void* plan, const void* taps, const void* x, const void* w, const void* b, void* work, void* y) {
  return cuda::fwd(params(plan, taps), nullptr, x, w, b, work, y);
}

int lk_rsdc_bwd_x(const void* plan, const void* taps, const void* g, const void* w, void* work, void* gx) {
  return cuda::bwd_x(params(plan, taps), nullptr, g, w, work, gx);
}

int lk_rsdc_bwd_w(const void* plan, const void* taps, const void* g, const void* x, void* work, void* gw) {
  return cuda::bwd_w(params(plan, taps), nullptr, g, x, work, gw);
}

i64 lk_rsdc_work_size(const void* plan, int pass) {
  return cuda::work_size(params(plan, nullptr), static_cast<Pass>(pass));
}

int lk_rsdc_kernel(const void* plan, int pass) {
  return static_cast<int>(cuda::kernel_of(params(plan, nullptr), static_cast<Pass>(pass)));
}

int lk_rsdc_most() { return cuda::kMaxKernel; }

}  // extern "C"
