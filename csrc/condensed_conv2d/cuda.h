// Launchers of the CUDA kernels: they choose a kernel and its tile, and put it on a stream. Addresses are the device's.
#pragma once
#include "condensed_conv2d/params.h"

namespace lk::condensed_conv2d::cuda {

// A cudaError_t, or kUnsupported.
constexpr int kUnsupported = -1;

int fwd(const Params& p, void* stream, const void* x, const void* w, const void* scale, const void* shift, void* y);

}  // namespace lk::condensed_conv2d::cuda
