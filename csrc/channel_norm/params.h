// Batch normalisation in training, its activation and a channel shuffle, as the sums and the maps that they are made
// of. Plain data; dense NCHW, float32; sums in float64.
#pragma once
#include "lk/cpu.h"

namespace lk::channel_norm {

enum class Act : int { none = 0, relu = 1, crelu = 2 };

// z: [n, c, pixels]. y and g: [n, c or 2 c for crelu, pixels], after a shuffle of `groups`. What an activation reads
// is t = scale[c] * z + shift[c]; crelu gives max(t, 0) and, c channels on, max(-t, 0).
// g_planes: from one image of g to the next where sums over z and g are taken, as z may be a part of the channels.
struct Params {
  i64 n, c, pixels, groups, g_planes;
  Act act;
  int threads;
};

// planes: from one image of the convolution's input to the next.
struct Mix {
  i64 inputs, groups, planes;
};

struct Table {
  // sums [4, c]: the mean of z, its variance (of the population), and unless g is null, the sums of g and of
  // g * (z - mean). Act none only.
  int (*moments)(const Params&, const float* z, const float* g, double* sums);
  // base, of y's shape, is added; it may be null.
  int (*apply)(const Params&, const float* z, const float* scale, const float* shift, const float* base, float* y);
  // t's gradient d: its sum and that of d * (z - centre), [2, c].
  int (*reduce)(const Params&, const float* z, const float* g, const float* scale, const float* shift,
                const float* centre, double* sums);
  // gz = a[c] * d + b[c] * (z - centre[c]) + k[c]; factors [4, c]: a, b, centre, k.
  int (*backward)(const Params&, const float* z, const float* g, const float* scale, const float* shift,
                  const float* factors, float* gz);
  // moments, and base + apply for act none or relu, of z = w d, which is not stored: a 1x1 convolution to an even
  // number of channels a group, w [c, inputs / groups], d [n, planes, pixels], of which it reads the first inputs.
  int (*mixed_moments)(const Params&, const Mix&, const float* d, const float* w, const float* g, double* sums);
  int (*mixed_apply)(const Params&, const Mix&, const float* d, const float* w, const float* scale, const float* shift,
                     const float* base, float* y);
  // reduce and backward of such a z, act none or relu: the gradients of d's channels, dense, and of w
  // in float64.
  int (*mixed_reduce)(const Params&, const Mix&, const float* d, const float* w, const float* g, const float* scale,
                      const float* shift, const float* centre, double* sums);
  int (*mixed_backward)(const Params&, const Mix&, const float* d, const float* w, const float* g, const float* scale,
                        const float* shift, const float* factors, float* gd, double* gw);
};

}  // namespace lk::channel_norm
