// What the CUDA kernels of this operator share: a call by value, and where a tap reads.
#pragma once
#include "lk/simt_index.cuh"
#include "rsdc2d/cuda.h"

namespace lk::rsdc2d::cuda {

using namespace lk::simt;

// Params as a kernel's argument: sizes that fit in 32 bits, strides that need not.
struct Problem {
  int n, ci, co, h, w, ho, wo;
  int kernel, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int groups, taps, sets, part, each;  // part, each: input channels and filters of a group
  bool channels_last;
  Strides x, y;
  const i64* cells;

  // The set of filter o.
  LK_DEVICE const i64* set_of(int o) const { return cells + static_cast<i64>(o / (co / sets)) * taps; }
};

inline Problem problem_of(const Params& p) {
  Problem q{};
  auto narrow = [](i64 v) { return static_cast<int>(v); };
  q.n = narrow(p.n);
  q.ci = narrow(p.ci);
  q.co = narrow(p.co);
  q.h = narrow(p.h);
  q.w = narrow(p.w);
  q.ho = narrow(p.ho);
  q.wo = narrow(p.wo);
  q.kernel = narrow(p.kernel);
  q.stride_h = narrow(p.stride_h);
  q.stride_w = narrow(p.stride_w);
  q.pad_h = narrow(p.pad_h);
  q.pad_w = narrow(p.pad_w);
  q.dilation_h = narrow(p.dilation_h);
  q.dilation_w = narrow(p.dilation_w);
  q.groups = narrow(p.groups);
  q.taps = narrow(p.taps);
  q.sets = narrow(p.sets);
  q.part = narrow(p.ci / p.groups);
  q.each = narrow(p.co / p.groups);
  q.channels_last = p.layout == Layout::nhwc;
  q.x = p.x;
  q.y = p.y;
  q.cells = p.cells;
  return q;
}

// A tap's pixel from the first of its window, padding subtracted; dead if the cell is none of the window.
struct Shift {
  int dy, dx;
  bool live;
  LK_DEVICE Shift(const Problem& p, i64 cell) {
    const u32 k = static_cast<u32>(p.kernel);
    live = cell >= 0 && cell < static_cast<i64>(k) * k;
    const u32 one = live ? static_cast<u32>(cell) : 0;
    const int u = static_cast<int>(one / k), v = static_cast<int>(one % k);
    dy = u * p.dilation_h - p.pad_h;
    dx = v * p.dilation_w - p.pad_w;
  }
};

}  // namespace lk::rsdc2d::cuda
