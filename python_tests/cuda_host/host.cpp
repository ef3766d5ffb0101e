// The CUDA launchers and kernels, compiled as host code, behind a C interface.
#include <string>

#include "bindings/multi_dwconv2d_plan.h"
#include "lk/simt.cuh"
#include "multi_dwconv2d/cuda.h"

using lk::i64;
using lk::multi_dwconv2d::Plan;
using lk::simt::Machine;
namespace cuda = lk::multi_dwconv2d::cuda;

namespace {

alignas(16) const float kOnes[4] = {1, 1, 1, 1};

// Kernels with a fault each, which the emulator has to find.
template <int kFault>
struct Faulty {
  static constexpr int kThreads = 64;
  struct Args {
    float* out;
  };
  static void run(const Args& a) {
    using namespace lk::simt;
    float* all = reinterpret_cast<float*>(shared());
    all[tid()] = static_cast<float>(tid());
    if (kFault == 0) tid() % 2 ? sync_warp() : sync();   // each half of a warp waits for the other
    if (kFault == 1 && tid() % 2) shuffle_xor(1.0f, 1);  // half a warp in an operation of the whole
    if (kFault == 1 && tid() % 2 == 0) sync_warp();
    if (kFault != 2) sync();           // 2: the other warp's numbers may not be there yet
    if (kFault == 5 || kFault == 6) {  // 5: the copy is not awaited
      sync();
      if (tid() < 16) copy_later<true>(all + 4 * tid(), kOnes, true);
      close_copies();
      if (kFault == 6) await_copies<0>();
      sync();
    }
    const float got = all[(tid() + 33) % kThreads];
    if (kFault == 3 && tid() < 32) {
      u32 one, two;
      load_rows2(one, two, reinterpret_cast<const char*>(all) + 4);  // not 16-byte aligned
    }
    a.out[tid()] = got;
  }
};

}  // namespace

extern "C" {

void lk_faulty(int which, float* out) {
  using lk::simt::launch;
  if (which == 0) launch<Faulty<0>>("faulty", {1}, 256, nullptr, {out});
  if (which == 1) launch<Faulty<1>>("faulty", {1}, 256, nullptr, {out});
  if (which == 2) launch<Faulty<2>>("faulty", {1}, 256, nullptr, {out});
  if (which == 3) launch<Faulty<3>>("faulty", {1}, 512, nullptr, {out});
  if (which == 4) launch<Faulty<4>>("right", {1}, 256, nullptr, {out});
  if (which == 5) launch<Faulty<4>>("large", {1, 65536}, 256, nullptr, {out});
  if (which == 6) launch<Faulty<5>>("early", {1}, 256, nullptr, {out});
  if (which == 7) launch<Faulty<6>>("awaited", {1}, 256, nullptr, {out});
}

void* lk_plan(const i64* head, const i64* x, const i64* y, const i64* rows, i64 branches) {
  std::vector<std::vector<i64>> list;
  for (i64 m = 0; m < branches; ++m) list.emplace_back(rows + 6 * m, rows + 6 * m + 6);
  return new Plan({head, head + 12}, {x, x + 4}, {y, y + 4}, list, false);
}

void lk_free(void* plan) { delete static_cast<Plan*>(plan); }

int lk_fwd(const void* plan, int exact, const void* x, const void* w, const void* b, void* y) {
  return cuda::fwd(static_cast<const Plan*>(plan)->p, {exact != 0, nullptr}, x, w, b, y);
}

int lk_bwd_x(const void* plan, int exact, const void* g, const void* w, void* gx) {
  return cuda::bwd_x(static_cast<const Plan*>(plan)->p, {exact != 0, nullptr}, g, w, gx);
}

int lk_bwd_w(const void* plan, int exact, const void* g, const void* x, void* work, void* gw) {
  return cuda::bwd_w(static_cast<const Plan*>(plan)->p, {exact != 0, nullptr}, g, x, work, gw);
}

i64 lk_work_size(const void* plan, int exact) {
  return cuda::work_size(static_cast<const Plan*>(plan)->p, {exact != 0, nullptr});
}

const char* lk_kernels(const void* plan, int exact, int pass) {
  return cuda::kernels(static_cast<const Plan*>(plan)->p, {exact != 0, nullptr}, static_cast<cuda::Pass>(pass));
}

int lk_branches() { return cuda::kMaxBranches; }

void lk_reset(int reverse, int dry) {
  Machine& m = Machine::get();
  m.dry = dry != 0;
  m.reverse = reverse != 0;
  m.fault.clear();
  m.launches.clear();
}

const char* lk_fault() { return Machine::get().fault.c_str(); }

// One line a launch since the last reset: name, grid, threads, bytes of shared memory.
const char* lk_launches() {
  static std::string text;
  text.clear();
  for (const auto& l : Machine::get().launches)
    text += l.kernel + " " + std::to_string(l.grid.x) + " " + std::to_string(l.grid.y) + " " +
            std::to_string(l.grid.z) + " " + std::to_string(l.threads) + " " + std::to_string(l.shared) + "\n";
  return text.c_str();
}

}  // extern "C"
