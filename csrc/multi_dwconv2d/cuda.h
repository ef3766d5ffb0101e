// Launchers of the CUDA kernels: they choose a kernel and its tile, and put it on a stream. Addresses are the device's.
#pragma once
#include "multi_dwconv2d/params.h"

namespace lk::multi_dwconv2d::cuda {

constexpr int kMaxBranches = 16;

// Where a call's kernels may choose: `exact` forbids products with zeros that stand for no tap.
struct Options {
  bool exact;
  void* stream;
};

// A cudaError_t, or kUnsupported.
constexpr int kUnsupported = -1;

int fwd(const Params& p, const Options& o, const void* x, const void* w, const void* bias, void* y);
int bwd_x(const Params& p, const Options& o, const void* g, const void* w, void* gx);

// Elements of the accumulator's type that bwd_w needs as `work`.
i64 work_size(const Params& p, const Options& o);
int bwd_w(const Params& p, const Options& o, const void* g, const void* x, void* work, void* gw);

// The kernels that would run, for people.
enum class Pass : int { fwd = 0, bwd_x = 1, bwd_w = 2 };
const char* kernels(const Params& p, const Options& o, Pass pass);

}  // namespace lk::multi_dwconv2d::cuda
