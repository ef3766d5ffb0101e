// Launchers of the CUDA kernels: they choose a kernel and its tile, and put it on a stream. Addresses are the device's.
#pragma once
#include "rsdc2d/params.h"

namespace lk::rsdc2d::cuda {

constexpr int kMaxKernel = 65535;  // cells of a window are counted in 32 bits

// A cudaError_t, or kUnsupported.
constexpr int kUnsupported = -1;

// What runs a pass: any call, or matrix products, 16 bit on tensor cores and wider types in tiles, whose operands lie
// channels last (Params::x and Params::y, but for what is written) at 16-byte aligned pixels.
enum class Kernel : int { generic = 0, tensor = 1, tiles = 2 };
Kernel kernel_of(const Params& p, Pass pass);

// Bytes that a pass needs as `work`; 0: none.
i64 work_size(const Params& p, Pass pass);

int fwd(const Params& p, void* stream, const void* x, const void* w, const void* bias, void* work, void* y);
int bwd_x(const Params& p, void* stream, const void* g, const void* w, void* work, void* gx);
int bwd_w(const Params& p, void* stream, const void* g, const void* x, void* work, void* gw);

}  // namespace lk::rsdc2d::cuda
