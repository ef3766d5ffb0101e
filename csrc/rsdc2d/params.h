// Convolution with chosen taps: what a launcher tells a kernel. Plain data; sizes in elements.
#pragma once
#include "lk/cpu.h"

namespace lk::rsdc2d {

enum class Layout : int { nchw = 0, nhwc = 1 };

struct Strides {
  i64 n, c, h, w;
};

// y[n, o, i, j] = sum over ci of the group of o and t of w[o, ci, t] * x[n, ci, i * stride + dy, j * stride + dx],
// where the tap t of the set of o is cell u * kernel + v of the window: dy = u * dilation - pad, and dx likewise.
struct Params {
  i64 n, ci, co, h, w, ho, wo;
  i64 kernel, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  i64 groups, taps, sets;  // taps of a set; sets: 1, groups or co
  Layout layout;
  DType dtype;
  int exact;         // whether a zero that is not in the sum may not be multiplied
  Strides x, y;      // of x (or its gradient) and of y (or its gradient); nchw: w == 1, nhwc: c == 1
  const i64* cells;  // [sets, taps]
  int threads;
};

inline i64 offset(const Strides& s, i64 n, i64 c, i64 h, i64 w) { return n * s.n + c * s.c + h * s.h + w * s.w; }

// How a pass is computed; native.py has words for it, in this order.
enum class Way : int { depthwise, generic, planes, pixels, channels, window, fours };
enum class Pass : int { fwd, bwd_x, bwd_w };

struct Table {
  int (*fwd)(const Params&, const void* x, const void* weight, const void* bias, void* y);
  int (*bwd_x)(const Params&, const void* g, const void* weight, void* gx);
  int (*bwd_w)(const Params&, const void* g, const void* x, void* gw);
  Way (*way)(const Params&, Pass);
  // Of a forward by Way::fours without bias, whose y is not stored: sums [4, co], of each channel the mean of y, its
  // variance (of the population), the sum of g, and that of g * (y - mean). g: y's channels, in the order that a
  // shuffle of so many groups gives, the first ones of `planes` dense channels.
  int (*moments)(const Params&, const float* x, const float* weight, const float* g, i64 groups, i64 planes,
                 double* sums);
};

}  // namespace lk::rsdc2d
