// What the CUDA kernels of this operator share: a call by value, and index arithmetic.
#pragma once
#include "lk/simt.cuh"
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

// index = index / size, returning what remains; in 32 bits where that is enough.
LK_DEVICE int take(i64& index, int size) {
  if (index >> 32) {
    const int rest = static_cast<int>(index % size);
    index /= size;
    return rest;
  }
  const u32 all = static_cast<u32>(index);
  const u32 quotient = all / static_cast<u32>(size);
  index = quotient;
  return static_cast<int>(all - quotient * static_cast<u32>(size));
}

// Division by a small number without dividing: exact while index * (by - 1) < 2^16 and index < 2^16.
struct Divider {
  u32 factor;
  static Divider of(int by) { return {static_cast<u32>((65536 + by - 1) / by)}; }
  LK_DEVICE int operator()(int index) const { return static_cast<int>((static_cast<u32>(index) * factor) >> 16); }
};

struct Place {
  int n, c, i, j;
};

// The index-th element of [n, c, high, wide], the memory's innermost dimension first.
LK_DEVICE Place place(Layout layout, i64 index, int c, int high, int wide) {
  Place at;
  if (layout == Layout::nhwc) {
    at.c = take(index, c);
    at.j = take(index, wide);
    at.i = take(index, high);
  } else {
    at.j = take(index, wide);
    at.i = take(index, high);
    at.c = take(index, c);
  }
  at.n = static_cast<int>(index);
  return at;
}

LK_DEVICE i64 at(const Strides& s, i64 n, i64 c, i64 h, i64 w) { return n * s.n + c * s.c + h * s.h + w * s.w; }

inline i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }

}  // namespace lk::multi_dwconv2d::cuda
