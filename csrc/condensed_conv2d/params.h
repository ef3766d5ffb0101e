// Picked channels through an affine map and an activation into a grouped 1x1 convolution. Plain data; sizes in
// elements.
#pragma once
#include "lk/cpu.h"

namespace lk::condensed_conv2d {

enum class Layout : int { nchw = 0, nhwc = 1 };
enum class Act : int { relu = 0, hardswish = 1 };
enum : int { bad_index = 3 };  // beside lk::Error

// y[n, o, p] = sum over k of w[o, k] * act(scale[g, k] * x[n, index[g, k], p] + shift[g, k]), g = o mod groups.
struct Params {
  i64 n, c, pixels, co, groups, picked;
  i64 image, pixel, channel;  // strides of x: nchw: pixel == 1, nhwc: channel == 1; y is dense
  Layout layout;
  DType dtype;
  Act act;
  const i64* index;  // [groups, picked]
  int threads;
};

struct Table {
  int (*fwd)(const Params&, const void* x, const void* weight, const void* scale, const void* shift, void* y);
  // NCHW alone; g is dense.
  int (*bwd_w)(const Params&, const void* g, const void* x, const void* scale, const void* shift, void* gw);
};

}  // namespace lk::condensed_conv2d
