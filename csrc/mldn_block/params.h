// A whole dense block of several paths: what a launcher tells a kernel. Plain data; sizes in elements.
#pragma once
#include "lk/cpu.h"

namespace lk::mldn_block {

// Maps are NCHW and dense. A path owns c / paths + layers * kappa channels of the buffer y; layer l reads the first
// c / paths + l * kappa of them and appends kappa to path partner[l * paths + path].
struct Params {
  i64 n, c, h, w;
  i64 layers, paths, kappa, mid, groups;  // groups of one path's second convolution, mid -> kappa
  i64 kernel, taps, sets;                 // its window and chosen cells; sets of one path (0: every cell, in order)
  i64 index_groups, condense;             // condensed first convolution; index_groups 0: not condensed
  i64 batch_stats, keep;                  // keep: the first convolution's outputs of all layers are saved
  double eps;
  std::uint32_t threshold;  // of the dropout; 0: none
  double factor;            // of kept values
  DType dtype;
  const i64* partner;
  int threads;
};

// acc: float, or double for double.
struct Inputs {
  const void *weight1, *weight3, *bias3;                // elements
  const void *affine1, *affine2, *running1, *running2;  // acc, [2, ...]
  const i64 *cells, *index;
  std::uint64_t seed;
};

struct Outputs {
  void *y, *mid;          // elements; mid: all layers, or room for one where it is not kept
  void *stats1, *stats2;  // acc, [2, ...]
};

struct Gradients {
  const void* g;                        // elements, like y
  void *buffer, *inner;                 // acc: [n, paths, width of the last layer, h, w] and [n, paths, mid, h, w]
  void *x, *weight1, *weight3, *bias3;  // elements
  void *affine1, *affine2;              // acc
};

struct Table {
  int (*fwd)(const Params&, const Inputs&, const Outputs&);
  int (*infer)(const Params&, const Inputs&, void* y);
  int (*bwd)(const Params&, const Inputs&, const Outputs&, const Gradients&);
};

}  // namespace lk::mldn_block
