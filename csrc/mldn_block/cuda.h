// Launchers of the CUDA kernels: they choose a kernel and its tile, and put it on a stream. Addresses are the device's.
#pragma once
#include "mldn_block/params.h"

namespace lk::mldn_block::cuda {

// A cudaError_t, or kUnsupported.
constexpr int kUnsupported = -1;

// How an evaluation is cut; `rows` 0: it does not fit in shared memory. `most`: what a block of threads may have.
struct Cut {
  int rows, bands, together, resident, shared;
};
Cut cut(const Params& p, int most);
i64 work_size(const Params& p);

// y holds x where the first layer reads it. `work`: room for work_size bytes.
int infer(const Params& p, void* stream, const Inputs& in, int most, void* work, void* y);

}  // namespace lk::mldn_block::cuda
