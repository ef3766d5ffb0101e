// Between the files of this operator's launchers.
#pragma once
#include "multi_dwconv2d/cuda_args.cuh"

namespace lk::multi_dwconv2d::cuda {

// About so many blocks for a pass; each takes several tiles of a channel beyond. Constants, so that the weight
// gradient's sums have one order everywhere; small in the tests on the host, so that small calls take the same loops.
#ifdef LK_HOST
constexpr i64 kPrograms = 4, kTiles = 2;
#else
constexpr i64 kPrograms = 1024, kTiles = 2048;
#endif

inline i64 weights_of(const Params& p) {
  i64 count = 0;
  for (i64 m = 0; m < p.num_branches; ++m)
    count += p.branches[m].channels * p.branches[m].kernel * p.branches[m].kernel;
  return count;
}

// Of dilation 1, kernels up to 7; `back`: from the output's gradient to the input's.
bool tile_takes(const Params& p, Pass pass);
int tile_conv(const Params& p, void* stream, bool back, const void* in, const void* w, const void* bias, void* out);

i64 tile_parts(const Params& p);
int tile_grad(const Params& p, void* stream, const void* g, const void* x, void* work);

// 16-bit nchw at stride 1 on tensor cores: kernels 3, 5, 7, 3+5 and 3+5+7.
bool mma_takes(const Params& p, Pass pass);
int mma_conv(const Params& p, void* stream, bool back, const void* in, const void* w, const void* bias, void* out);

// The first stage of the weight gradient, in so many parts.
i64 mma_parts(const Params& p);
int mma_grad(const Params& p, void* stream, const void* g, const void* x, void* work);

int generic_fwd(const Params& p, void* stream, const void* x, const void* w, const void* bias, void* y);
int generic_bwd_x(const Params& p, void* stream, const void* g, const void* w, void* gx);
i64 generic_parts(const Params& p);
int generic_bwd_w(const Params& p, void* stream, const void* g, const void* x, void* work);
int sum_parts(const Params& p, void* stream, const void* work, i64 parts, void* gw);

}  // namespace lk::multi_dwconv2d::cuda
