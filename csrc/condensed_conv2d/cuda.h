// Launchers of the CUDA kernels: they choose a kernel and its tile, and put it on a stream. Addresses are the device's.
#pragma once
#include "condensed_conv2d/params.h"

namespace lk::condensed_conv2d::cuda {

// A cudaError_t, or kUnsupported.
constexpr int kUnsupported = -1;

int fwd(const Params& p, void* stream, const void* x, const void* w, const void* scale, const void* shift, void* y);

// Of a backward: what it reads, and room for work_size bytes. The entries of the index that name channel c are
// order[bounds[c]] to order[bounds[c + 1]], in their order.
struct Given {
  const void *g, *x, *w, *scale, *shift;
  const i64 *order, *bounds;
  void* work;
};

// And the gradients that it writes.
struct Taken {
  void *x, *w, *scale, *shift;
};

i64 work_size(const Params& p);
int bwd(const Params& p, void* stream, const Given& given, const Taken& taken);

}  // namespace lk::condensed_conv2d::cuda
