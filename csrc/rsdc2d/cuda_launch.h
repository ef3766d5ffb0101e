// Between the files of this operator's launchers.
#pragma once
#include "rsdc2d/cuda_args.cuh"

namespace lk::rsdc2d::cuda {

// About so many blocks for a weight gradient. A constant, so that its sums have one order everywhere; small in the
// tests on the host, so that small calls take the same loops.
#ifdef LK_HOST
constexpr i64 kPrograms = 4;
#else
constexpr i64 kPrograms = 1024;
#endif

inline i64 weights_of(const Params& p) { return p.co * (p.ci / p.groups) * p.taps; }

int generic_fwd(const Params& p, void* stream, const void* x, const void* w, const void* bias, void* y);
int generic_bwd_x(const Params& p, void* stream, const void* g, const void* w, void* gx);

// Where filters share their taps; `back`: from the output's gradient to the input's. `work` has room for the weight.
bool product_takes(const Params& p, Pass pass);
int product_conv(const Params& p, void* stream, bool back, const void* in, const void* w, const void* bias, void* work,
                 void* out);

// The first stage of the weight gradient, in so many parts; and the second.
i64 product_parts(const Params& p);
int product_grad(const Params& p, void* stream, const void* g, const void* x, void* work);
i64 generic_parts(const Params& p);
int generic_bwd_w(const Params& p, void* stream, const void* g, const void* x, void* work);
int sum_parts(const Params& p, void* stream, const void* work, i64 parts, void* gw);

}  // namespace lk::rsdc2d::cuda
