// A norm in training as one call each: its output, its gradients, and its output's scalar product with a gradient.
// The kernels of Table and, between them, a few numbers a channel.
#pragma once
#include <cmath>
#include <vector>

#include "channel_norm/params.h"

namespace lk::channel_norm {

// weight and bias may be null. Of the batch's statistics the running ones take `share`, if they are not null.
struct Norm {
  const float *weight, *bias;
  double eps;
  float *running_mean, *running_var;
  double share;
};

// What the norm reads: a map, or with `d` a 1x1 convolution of a map, which is not stored.
struct Source {
  const float* z;
  Mix mix;
  const float *d, *w;
};

// kept [5, c]: mean, variance, 1 / deviation, and scale and shift of t = scale * z + shift.
struct Kept {
  float *mean, *variance, *inverse, *scale, *shift;
  Kept(float* at, i64 c) : mean(at), variance(at + c), inverse(at + 2 * c), scale(at + 3 * c), shift(at + 4 * c) {}
};

inline int moments_of(const Table& table, const Params& p, const Source& from, const float* g, double* sums) {
  return from.d ? table.mixed_moments(p, from.mix, from.d, from.w, g, sums) : table.moments(p, from.z, g, sums);
}

inline int apply_to(const Table& table, const Params& p, const Source& from, const Kept& kept, const float* base,
                    float* y) {
  return from.d ? table.mixed_apply(p, from.mix, from.d, from.w, kept.scale, kept.shift, base, y)
                : table.apply(p, from.z, kept.scale, kept.shift, base, y);
}

inline void keep(const Params& p, const Norm& norm, const double* moments, Kept kept) {
  for (i64 c = 0; c < p.c; ++c) {
    const double inverse = 1.0 / std::sqrt(moments[p.c + c] + norm.eps);
    const double scale = norm.weight ? inverse * norm.weight[c] : inverse;
    kept.mean[c] = static_cast<float>(moments[c]);
    kept.variance[c] = static_cast<float>(moments[p.c + c]);
    kept.inverse[c] = static_cast<float>(inverse);
    kept.scale[c] = static_cast<float>(scale);
    kept.shift[c] = static_cast<float>((norm.bias ? norm.bias[c] : 0.0) - moments[c] * scale);
  }
}

inline void count_in(const Params& p, const Norm& norm, const double* moments) {
  if (!norm.running_mean) return;
  const double count = static_cast<double>(p.n * p.pixels), unbiased = count / (count - 1);
  for (i64 c = 0; c < p.c; ++c) {
    float &mean = norm.running_mean[c], &variance = norm.running_var[c];
    mean = static_cast<float>(mean + norm.share * (moments[c] - mean));
    variance = static_cast<float>(variance + norm.share * (moments[p.c + c] * unbiased - variance));
  }
}

// y = base + shuffle(act(t)); base, of y's shape, may be null.
inline int forward(const Table& table, const Params& p, const Norm& norm, const Source& from, float* at,
                   const float* base, float* y) {
  std::vector<double> moments(4 * p.c);
  const Kept kept(at, p.c);
  if (const int error = moments_of(table, p, from, nullptr, moments.data())) return error;
  keep(p, norm, moments.data(), kept);
  count_in(p, norm, moments.data());
  return apply_to(table, p, from, kept, base, y);
}

// found [2, c]: the gradients of weight and bias; gz unless null: that of what the norm reads, or of what the
// convolution does, and then gw is the convolution's; own: weight and bias times their gradients, summed.
inline int backward(const Table& table, const Params& p, const Norm& norm, const Source& from, const float* g,
                    float* at, float* found, float* gz, float* gw, double* own) {
  std::vector<double> sums(2 * p.c);
  std::vector<float> factors(4 * p.c);
  const Kept kept(at, p.c);
  if (const int error =
          from.d ? table.mixed_reduce(p, from.mix, from.d, from.w, g, kept.scale, kept.shift, kept.mean, sums.data())
                 : table.reduce(p, from.z, g, kept.scale, kept.shift, kept.mean, sums.data()))
    return error;
  const double count = static_cast<double>(p.n * p.pixels);
  *own = 0;
  for (i64 c = 0; c < p.c; ++c) {
    const double product = sums[p.c + c] * kept.inverse[c], share = kept.scale[c] / -count;
    found[c] = static_cast<float>(product);
    found[p.c + c] = static_cast<float>(sums[c]);
    *own += (norm.weight ? norm.weight[c] : 1.0) * product + (norm.bias ? norm.bias[c] : 0.0) * sums[c];
    factors[c] = kept.scale[c];
    factors[p.c + c] = static_cast<float>(share * product * kept.inverse[c]);
    factors[2 * p.c + c] = kept.mean[c];
    factors[3 * p.c + c] = static_cast<float>(share * sums[c]);
  }
  if (!gz) return ok;
  if (!from.d) return table.backward(p, from.z, g, kept.scale, kept.shift, factors.data(), gz);
  std::vector<double> weights(p.c * (from.mix.inputs / from.mix.groups));
  const int error =
      table.mixed_backward(p, from.mix, from.d, from.w, g, kept.scale, kept.shift, factors.data(), gz, weights.data());
  for (std::size_t e = 0; e < weights.size(); ++e) gw[e] = static_cast<float>(weights[e]);
  return error;
}

// The scalar product of shuffle(act(t)) and g; of a convolution, act none only.
inline int product(const Table& table, const Params& p, const Norm& norm, const Source& from, const float* g,
                   double* found) {
  std::vector<double> moments(4 * p.c);
  const bool linear = p.act == Act::none;
  if (const int error = moments_of(table, p, from, linear ? g : nullptr, moments.data())) return error;
  double *total = &moments[2 * p.c], *centred = &moments[3 * p.c];
  if (!linear) {
    std::vector<float> at(5 * p.c);
    const Kept kept(at.data(), p.c);
    keep(p, norm, moments.data(), kept);
    if (const int error = table.reduce(p, from.z, g, kept.scale, kept.shift, kept.mean, total)) return error;
  }
  *found = 0;
  for (i64 c = 0; c < p.c; ++c) {
    const double scale = (norm.weight ? norm.weight[c] : 1.0) / std::sqrt(moments[p.c + c] + norm.eps);
    *found += scale * centred[c] + (norm.bias ? norm.bias[c] : 0.0) * total[c];
  }
  return ok;
}

}  // namespace lk::channel_norm
