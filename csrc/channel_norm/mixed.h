// The norm of a grouped 1x1 convolution whose output is made in registers, wherever it is needed, and never stored.
#pragma once
#include "channel_norm/passes.h"

namespace {

constexpr int kOut = 2;  // channels made at once, of the same inputs

// Channels `first` and the next of a convolution: their inputs' planes in image 0, their weights.
struct Pair {
  i64 inputs, first, from;
  const float* w;
  Pair(const Params& p, const Mix& m, const float* weights, i64 pair)
      : inputs(m.inputs / m.groups),
        first(pair * kOut),
        from(first / (p.c / m.groups) * inputs),
        w(weights + first * inputs) {}
};

// kIn: inputs of a filter, 0 for any number.
template <int kIn>
struct Filters {
  V held[kOut][kIn ? kIn : 1];
  const float* w;
  i64 inputs;
  explicit Filters(const Pair& pair) : w(pair.w), inputs(pair.inputs) {
    if constexpr (kIn > 0)
      for (int o = 0; o < kOut; ++o)
        for (int j = 0; j < kIn; ++j) held[o][j] = splat<float>(w[o * kIn + j]);
  }
  // z += w d, for a vector of pixels.
  LK_INLINE void add(const float* d, i64 pixels, V* z) const {
    if constexpr (kIn > 0) {
      for (int j = 0; j < kIn; ++j) {
        const V x = vload<float>(d + j * pixels);
        for (int o = 0; o < kOut; ++o) z[o] = vfma<V>(x, held[o][j], z[o]);
      }
    } else {
      for (i64 j = 0; j < inputs; ++j) {
        const V x = vload<float>(d + j * pixels);
        for (int o = 0; o < kOut; ++o) z[o] = vfma<V>(x, splat<float>(w[o * inputs + j]), z[o]);
      }
    }
  }
  // The same of one pixel.
  float one(const float* d, i64 pixels, int o) const {
    float sum = 0;
    for (i64 j = 0; j < inputs; ++j) sum += w[o * inputs + j] * d[j * pixels];
    return sum;
  }
};

template <bool kGradient, int kIn>
void mixed_plane(const Params& p, const Filters<kIn>& filters, const float* d, const float* const* g,
                 const float* shift, V (*fast)[4], double (*slow)[4]) {
  V s[kOut][4];
  for (int o = 0; o < kOut; ++o)
    for (int k = 0; k < 4; ++k) s[o][k] = fast[o][k];
  i64 i = 0;
  for (; i + L <= p.pixels; i += L) {
    V z[kOut];
    for (int o = 0; o < kOut; ++o) z[o] = splat<float>(-shift[o]);
    filters.add(d + i, p.pixels, z);
    for (int o = 0; o < kOut; ++o) {
      s[o][0] += z[o];
      s[o][1] = vfma<V>(z[o], z[o], s[o][1]);
      if constexpr (kGradient) {
        const V h = vload<float>(g[o] + i);
        s[o][2] += h;
        s[o][3] = vfma<V>(h, z[o], s[o][3]);
      }
    }
  }
  for (int o = 0; o < kOut; ++o)
    for (int k = 0; k < 4; ++k) fast[o][k] = s[o][k];
  for (; i < p.pixels; ++i)
    for (int o = 0; o < kOut; ++o) {
      const double t = static_cast<double>(filters.one(d + i, p.pixels, o)) - shift[o];
      slow[o][0] += t, slow[o][1] += t * t;
      if constexpr (kGradient) slow[o][2] += g[o][i], slow[o][3] += g[o][i] * t;
    }
}

template <bool kGradient, int kIn>
void mixed_moments_of(const Params& p, const Mix& m, const float* d, const float* w, const float* g, double* out,
                      i64 from, i64 end) {
  constexpr i64 kPairs = kChannels / kOut;
  const i64 images = kFlush / p.pixels < 1 ? 1 : kFlush / p.pixels, count = p.n * p.pixels;
  Sums sums;
  float shift[kChannels];
  for (i64 first = from; first < end; first += kPairs) {
    const i64 pairs = smaller(kPairs, end - first);
    sums.clear();
    for (i64 k = 0; k < pairs; ++k) {
      // Distances are taken from the first image's mean, so that a large mean costs no accuracy.
      const Pair pair(p, m, w, first + k);
      for (int o = 0; o < kOut; ++o) {
        double mean = 0;
        for (i64 j = 0; j < pair.inputs; ++j) {
          double sum = 0;
          for (i64 i = 0; i < p.pixels; ++i) sum += d[(pair.from + j) * p.pixels + i];
          mean += sum * pair.w[o * pair.inputs + j];
        }
        shift[k * kOut + o] = static_cast<float>(mean / static_cast<double>(p.pixels));
      }
    }
    for (i64 n = 0; n < p.n; ++n) {
      for (i64 k = 0; k < pairs; ++k) {
        const Pair pair(p, m, w, first + k);
        const Filters<kIn> filters(pair);
        const float* gradients[kOut] = {};
        if constexpr (kGradient)
          for (int o = 0; o < kOut; ++o) gradients[o] = g + (n * p.c + Where(p, pair.first + o).plus) * p.pixels;
        mixed_plane<kGradient, kIn>(p, filters, d + (n * m.planes + pair.from) * p.pixels, gradients, shift + k * kOut,
                                    sums.fast + k * kOut, sums.slow + k * kOut);
      }
      if ((n + 1) % images == 0 || n + 1 == p.n) sums.flush(pairs * kOut);
    }
    for (i64 k = 0; k < pairs * kOut; ++k) {
      const i64 c = first * kOut + k;
      const double* const found = sums.slow[k];
      const double off = found[0] / static_cast<double>(count);
      const double variance = found[1] / static_cast<double>(count) - off * off;
      out[c] = shift[k] + off;
      out[p.c + c] = variance < 0 ? 0 : variance;
      if constexpr (kGradient) out[2 * p.c + c] = found[2], out[3 * p.c + c] = found[3] - off * found[2];
    }
  }
}

template <int kIn>
void mixed_apply_to(const Params& p, const Mix& m, const float* d, const float* w, const float* scale,
                    const float* shift, const float* base, float* y, i64 from, i64 end) {
  for (i64 n = 0; n < p.n; ++n)
    for (i64 k = from; k < end; ++k) {
      const Pair pair(p, m, w, k);
      const Filters<kIn> filters(pair);
      const float* const a = d + (n * m.planes + pair.from) * p.pixels;
      i64 at[kOut];
      for (int o = 0; o < kOut; ++o) at[o] = (n * p.c + Where(p, pair.first + o).plus) * p.pixels;
      i64 i = 0;
      for (; i + L <= p.pixels; i += L) {
        V z[kOut] = {};
        filters.add(a + i, p.pixels, z);
        for (int o = 0; o < kOut; ++o) {
          V t = vfma<V>(z[o], splat<float>(scale[pair.first + o]), splat<float>(shift[pair.first + o]));
          if (p.act == Act::relu) t = rectified(t);
          vstore<float>(y + at[o] + i, base ? t + vload<float>(base + at[o] + i) : t);
        }
      }
      for (; i < p.pixels; ++i)
        for (int o = 0; o < kOut; ++o) {
          float t = filters.one(a + i, p.pixels, o) * scale[pair.first + o] + shift[pair.first + o];
          if (p.act == Act::relu) t = t < 0 ? 0 : t;
          y[at[o] + i] = base ? t + base[at[o] + i] : t;
        }
    }
}

template <int kValue>
struct IntOf {
  static constexpr int value = kValue;
};

// body(kIn), a constant.
template <class Body>
LK_INLINE void by_inputs(const Mix& m, Body body) {
  switch (m.inputs / m.groups) {
    case 2:
      return body(IntOf<2>());
    case 4:
      return body(IntOf<4>());
    case 8:
      return body(IntOf<8>());
    default:
      return body(IntOf<0>());
  }
}

int mixed_moments(const Params& p, const Mix& m, const float* d, const float* w, const float* g, double* sums) {
  return in_parts(p, p.c / kOut, [&](i64 from, i64 end) {
    by_inputs(m, [&](auto in) {
      g ? mixed_moments_of<true, decltype(in)::value>(p, m, d, w, g, sums, from, end)
        : mixed_moments_of<false, decltype(in)::value>(p, m, d, w, g, sums, from, end);
    });
  });
}

int mixed_apply(const Params& p, const Mix& m, const float* d, const float* w, const float* scale, const float* shift,
                const float* base, float* y) {
  return in_parts(p, p.c / kOut, [&](i64 from, i64 end) {
    by_inputs(m, [&](auto in) { mixed_apply_to<decltype(in)::value>(p, m, d, w, scale, shift, base, y, from, end); });
  });
}

}  // namespace
