// What the CUDA kernels of this operator share: a call by value.
#pragma once
#include "lk/simt_index.cuh"
#include "multi_dwconv2d/cuda.h"

namespace lk::multi_dwconv2d::cuda {

using namespace lk::simt;

// Params as a kernel's argument: sizes that fit in 32 bits, strides that need not, branches by value.
struct Problem {
  int n, c, h, w, ho, wo, stride_h, stride_w;
  Strides x, y;
  Combine combine;
  Layout layout;
  int branches;
  Branch branch[kMaxBranches];
};

inline Problem problem_of(const Params& p) {
  Problem q{};
  q.n = static_cast<int>(p.n);
  q.c = static_cast<int>(p.c);
  q.h = static_cast<int>(p.h);
  q.w = static_cast<int>(p.w);
  q.ho = static_cast<int>(p.ho);
  q.wo = static_cast<int>(p.wo);
  q.stride_h = static_cast<int>(p.stride_h);
  q.stride_w = static_cast<int>(p.stride_w);
  q.x = p.x;
  q.y = p.y;
  q.combine = p.combine;
  q.layout = p.layout;
  q.branches = static_cast<int>(p.num_branches);
  for (int m = 0; m < q.branches; ++m) q.branch[m] = p.branches[m];
  return q;
}

LK_DEVICE i64 at(const Strides& s, i64 n, i64 c, i64 h, i64 w) { return n * s.n + c * s.c + h * s.h + w * s.w; }

}  // namespace lk::multi_dwconv2d::cuda
