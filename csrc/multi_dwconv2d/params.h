// Multi-kernel depthwise convolution: what a launcher tells a kernel. Plain data; sizes in elements.
#pragma once
#include "lk/cpu.h"

namespace lk::multi_dwconv2d {

enum class Combine : int { concat = 0, add = 1, cumulative = 2 };
enum class Layout : int { nchw = 0, nhwc = 1 };

// One branch: y[out_start : out_start + channels] += depthwise(x[in_start : in_start + channels]).
struct Branch {
  i64 kernel, dilation, in_start, out_start, channels, weight_start;
};

struct Strides {
  i64 n, c, h, w;
};

struct Params {
  i64 n, c, h, w, ho, wo, c_out, stride_h, stride_w;
  Strides x, y;  // of x (or its gradient) and of y (or its gradient); nchw: w == 1, nhwc: c == 1
  Combine combine;
  Layout layout;
  DType dtype;
  i64 num_branches;
  const Branch* branches;
  int threads;
  bool exact;  // only products of real taps, each by itself: what is infinite stays so
};

// Element offsets may exceed 2^31; every product is formed in 64 bits.
inline i64 offset(const Strides& s, i64 n, i64 c, i64 h, i64 w) { return n * s.n + c * s.c + h * s.h + w * s.w; }

struct Table {
  int (*fwd)(const Params&, const void* x, const void* weight, const void* bias, void* y);
  int (*bwd_x)(const Params&, const void* g, const void* weight, void* gx);
  int (*bwd_w)(const Params&, const void* g, const void* x, void* gw);
};

}  // namespace lk::multi_dwconv2d
