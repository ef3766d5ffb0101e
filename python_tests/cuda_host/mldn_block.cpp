// The launchers of mldn_block behind a C interface.
#include "bindings/mldn_block_plan.h"
#include "lk/simt.cuh"
#include "mldn_block/cuda.h"

using lk::i64;
using lk::mldn_block::Plan;
namespace cuda = lk::mldn_block::cuda;

extern "C" {

void* lk_mldn_plan(const i64* head, double eps, const i64* table, i64 partners) {
  return new Plan({head, head + 19}, eps, 0, 1, {table, table + partners});
}

int lk_mldn_infer(const void* plan, const i64* in, i64 most, void* work, void* y) {
  const auto inputs = lk::mldn_block::inputs({in, in + 16}, 0);
  return cuda::infer(static_cast<const Plan*>(plan)->with(1), nullptr, inputs, static_cast<int>(most), work, y);
}

void lk_mldn_cut(const void* plan, i64 most, i64* out) {
  const cuda::Cut c = cuda::cut(static_cast<const Plan*>(plan)->with(1), static_cast<int>(most));
  for (int v : {c.rows, c.bands, c.together, c.resident, c.shared}) *out++ = v;
}

i64 lk_mldn_work_size(const void* plan) { return cuda::work_size(static_cast<const Plan*>(plan)->with(1)); }

}  // extern "C"
