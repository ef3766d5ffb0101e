// Between the files of this operator's launchers.
#pragma once
#include "condensed_conv2d/cuda_args.cuh"

namespace lk::condensed_conv2d::cuda {

// Blocks that fill a device about four times; few in the tests on the host, so that small calls take the same loops.
#ifdef LK_HOST
constexpr i64 kFill = 2;
#else
constexpr i64 kFill = 528;
#endif

// Groups of a block, all where blocks are enough, and blocks of the same pixels.
inline void spread(const Problem& p, i64 tiles, int& together, int& splits) {
  together = p.groups;
  while (together > 1 && tiles * ceil_div(p.groups, together) < kFill) together = (together + 1) / 2;
  splits = static_cast<int>(ceil_div(p.groups, together));
}

}  // namespace lk::condensed_conv2d::cuda
