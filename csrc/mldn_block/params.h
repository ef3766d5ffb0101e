// A whole dense block of several paths: what a launcher tells a kernel. Plain data; sizes in elements.
#pragma once
#include "lk/cpu.h"

namespace lk::mldn_block {

// The kernels' maps are NCHW and dense; x, y and their gradients may be NHWC. A path owns c / paths + layers * kappa
// channels of the buffer y; layer l reads the first c / paths + l * kappa of them and appends kappa to path partner[l *
// paths + path].
struct Params {
  i64 n, c, h, w;
  i64 layers, paths, kappa, mid, groups;  // groups of one path's second convolution, mid -> kappa
  i64 kernel, taps, sets;                 // its window and chosen cells; sets of one path (0: every cell, in order)
  i64 index_groups, condense;             // condensed first convolution; index_groups 0: not condensed
  i64 batch_stats, keep;                  // keep: the first convolution's outputs of all layers are saved
  i64 nhwc;                               // x, y and the gradient of x are
  i64 version;                            // 2: a third norm, ReLU and 1x1 add a path's new channels to what it has
  double eps;
  std::uint32_t threshold;  // of the dropout; 0: none
  double factor;            // of kept values
  DType dtype;
  const i64* partner;
  int threads;
};

// acc: float, or double for double.
struct Inputs {
  const void* x;                                       // elements; not read by the backward pass
  i64 x_image, x_pixel;                                // from image to image; NHWC: from pixel to pixel, else 0
  const void *weight1, *weight3, *bias3, *weight_sfr;  // elements
  const void *affine1, *affine2, *affine3, *running1, *running2, *running3;  // acc, [2, ...]
  const i64 *cells, *index, *index_sfr;
  std::uint64_t seed;
};

struct Outputs {
  void *y, *mid;  // elements; mid: all layers, or room for one where it is not kept; then, if kept in version 2, the
                  // second convolutions' outputs, and [n, paths, width of the last layer, h, w] lost to rounding
  void* pixels;   // NHWC: elements; y again, which the backward pass makes y's planes of
  void *stats1, *stats2, *stats3;  // acc, [2, ...]
};

struct Gradients {
  const void* g;  // elements, like y
  i64 g_nhwc;     // it is; then the buffer has place for all channels of y
  // acc: [n, paths, width of the last layer, h, w] (version 2: like y, with the values of g) and [n, paths, mid, h, w]
  void *buffer, *inner;
  void* third;                                       // version 2: acc, [n, paths, kappa, h, w]
  void *state, *lost;                                // version 2: elements, copies of y and of what it lost to rounding
  void *x, *weight1, *weight3, *bias3, *weight_sfr;  // elements
  void *affine1, *affine2, *affine3;                 // acc
};

struct Table {
  int (*fwd)(const Params&, const Inputs&, const Outputs&);
  int (*infer)(const Params&, const Inputs&, void* y);
  int (*bwd)(const Params&, const Inputs&, const Outputs&, const Gradients&);
};

}  // namespace lk::mldn_block
