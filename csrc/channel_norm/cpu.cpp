// Compiled once for each instruction set, with LK_ISA naming it.
#include "channel_norm/params.h"
#include "lk/vec.h"
#if defined(_OPENMP)
#include <omp.h>
#endif

#define LK_CAT2(a, b) a##b
#define LK_CAT(a, b) LK_CAT2(a, b)

namespace {

using namespace lk;
using namespace lk::channel_norm;

using V = Vec<float>;
constexpr i64 L = kLanes<float>;
constexpr i64 kGrain = 1 << 16;  // elements below which no team of threads is opened
constexpr i64 kFlush = 8192;     // elements that are summed in float32 before they go to float64, in L sums

inline i64 smaller(i64 a, i64 b) { return a < b ? a : b; }

inline double total(V v) {
  double sum = 0;
  for (int i = 0; i < L; ++i) sum += v[i];
  return sum;
}

// Where the outputs of channel c are, in planes: the rectified map's, and the rectified negative's.
struct Where {
  i64 outputs, plus, minus;
  Where(const Params& p, i64 c) : outputs(p.act == Act::crelu ? 2 * p.c : p.c), plus(at(p, c)), minus(at(p, p.c + c)) {}
  i64 at(const Params& p, i64 k) const {
    const i64 each = outputs / p.groups;
    return each ? k % each * p.groups + k / each : k;
  }
};

// Each thread takes some of the channels of all images, image by image: memory in its order.
template <class Body>
int by_channel(const Params& p, Body body) {
  const i64 wanted = p.n * p.c * p.pixels > kGrain ? smaller(p.threads, p.c) : 1;
  const int threads = wanted < 1 ? 1 : static_cast<int>(wanted);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int part = 0; part < threads; ++part) body(p.c * part / threads, p.c * (part + 1) / threads);
  return ok;
}

// Up to four running sums a channel: vectors in float32 that are emptied into float64 every so often.
constexpr i64 kChannels = 32;
struct Sums {
  V fast[kChannels][4];
  double slow[kChannels][4];
  void clear() {
    for (i64 c = 0; c < kChannels; ++c)
      for (int i = 0; i < 4; ++i) fast[c][i] = V{}, slow[c][i] = 0;
  }
  void flush(i64 channels) {
    for (i64 c = 0; c < channels; ++c)
      for (int i = 0; i < 4; ++i) slow[c][i] += total(fast[c][i]), fast[c][i] = V{};
  }
};

// Calls plane(n, c, sums) for the channels from..end in blocks, then done(c, slow sums).
template <class Plane, class Done>
void sum_planes(const Params& p, i64 from, i64 end, Plane plane, Done done) {
  Sums sums;
  const i64 images = kFlush / p.pixels < 1 ? 1 : kFlush / p.pixels;
  for (i64 first = from; first < end; first += kChannels) {
    const i64 count = smaller(kChannels, end - first);
    sums.clear();
    for (i64 n = 0; n < p.n; ++n) {
      for (i64 c = 0; c < count; ++c) plane(n, first + c, sums.fast[c], sums.slow[c]);
      if ((n + 1) % images == 0 || n + 1 == p.n) sums.flush(count);
    }
    for (i64 c = 0; c < count; ++c) done(first + c, sums.slow[c]);
  }
}

template <bool kGradient>
void moments_of(const Params& p, const float* z, const float* g, double* out, i64 from, i64 end) {
  const i64 count = p.n * p.pixels;
  // Distances are taken from the first image's mean, so that a large mean costs no accuracy.
  auto near = [&](i64 c) {
    double sum = 0;
    for (i64 i = 0; i < p.pixels; ++i) sum += z[c * p.pixels + i];
    return static_cast<float>(sum / static_cast<double>(p.pixels));
  };
  for (i64 c = from; c < end; ++c) out[c] = near(c);
  sum_planes(
      p, from, end,
      [&](i64 n, i64 c, V* fast, double* slow) {
        const float shift = static_cast<float>(out[c]);
        const float* const a = z + (n * p.c + c) * p.pixels;
        const float* b = nullptr;
        if constexpr (kGradient) b = g + (n * p.c + Where(p, c).plus) * p.pixels;
        V s = fast[0], q = fast[1], e = fast[2], d = fast[3];
        i64 i = 0;
        for (; i + L <= p.pixels; i += L) {
          const V t = vload<float>(a + i) - shift;
          s += t;
          q = vfma<V>(t, t, q);
          if constexpr (kGradient) {
            const V h = vload<float>(b + i);
            e += h;
            d = vfma<V>(h, t, d);
          }
        }
        fast[0] = s, fast[1] = q, fast[2] = e, fast[3] = d;
        for (; i < p.pixels; ++i) {
          const double t = static_cast<double>(a[i]) - shift;
          slow[0] += t, slow[1] += t * t;
          if constexpr (kGradient) slow[2] += b[i], slow[3] += b[i] * t;
        }
      },
      [&](i64 c, const double* sums) {
        const double off = sums[0] / static_cast<double>(count);
        const double variance = sums[1] / static_cast<double>(count) - off * off;
        out[c] += off;
        out[p.c + c] = variance < 0 ? 0 : variance;
        if constexpr (kGradient) out[2 * p.c + c] = sums[2], out[3 * p.c + c] = sums[3] - off * sums[2];
      });
}

int moments(const Params& p, const float* z, const float* g, double* sums) {
  return by_channel(p, [&](i64 from, i64 end) {
    g ? moments_of<true>(p, z, g, sums, from, end) : moments_of<false>(p, z, g, sums, from, end);
  });
}

// Written so that a NaN stays one.
LK_INLINE V rectified(V t) { return t < V{} ? V{} : t; }
LK_INLINE V passed(V t, V g) { return t <= V{} ? V{} : g; }

// Whole vectors of a plane, and what is left over as one that is filled up with zeros.
template <class Body>
LK_INLINE void over(i64 pixels, Body body) {
  i64 i = 0;
  for (; i + L <= pixels; i += L) body(i, L);
  if (i < pixels) body(i, pixels - i);
}
LK_INLINE V load(const float* p, i64 count) { return count == L ? vload<float>(p) : vload(p, static_cast<int>(count)); }
LK_INLINE void store(float* p, V v, i64 count) {
  if (count == L)
    vstore<float>(p, v);
  else
    vstore(p, v, static_cast<int>(count));
}

template <Act kAct>
void apply_to(const Params& p, const float* z, const float* scale, const float* shift, float* y, i64 from, i64 end) {
  for (i64 n = 0; n < p.n; ++n)
    for (i64 c = from; c < end; ++c) {
      const Where where(p, c);
      const float* const a = z + (n * p.c + c) * p.pixels;
      float* const plus = y + (n * where.outputs + where.plus) * p.pixels;
      float* const minus = kAct == Act::crelu ? y + (n * where.outputs + where.minus) * p.pixels : nullptr;
      const V s = splat<float>(scale[c]), o = splat<float>(shift[c]);
      over(p.pixels, [&](i64 i, i64 count) {
        const V t = vfma<V>(load(a + i, count), s, o);
        store(plus + i, kAct == Act::none ? t : rectified(t), count);
        if constexpr (kAct == Act::crelu) store(minus + i, rectified(-t), count);
      });
    }
}

// The gradient of what the activation read.
template <Act kAct>
LK_INLINE V arrived(V t, const float* plus, const float* minus, i64 i, i64 count) {
  const V g = load(plus + i, count);
  if constexpr (kAct == Act::none) return g;
  if constexpr (kAct == Act::relu) return passed(t, g);
  return passed(t, g) - passed(-t, load(minus + i, count));
}

template <Act kAct>
void reduce_to(const Params& p, const float* z, const float* g, const float* scale, const float* shift,
               const float* centre, double* out, i64 from, i64 end) {
  sum_planes(
      p, from, end,
      [&](i64 n, i64 c, V* fast, double*) {
        const Where where(p, c);
        const float* const a = z + (n * p.c + c) * p.pixels;
        const float* const plus = g + (n * where.outputs + where.plus) * p.pixels;
        const float* const minus = kAct == Act::crelu ? g + (n * where.outputs + where.minus) * p.pixels : nullptr;
        const V s = splat<float>(scale[c]), o = splat<float>(shift[c]);
        const float middle = centre[c];
        V e = fast[0], d = fast[1];
        over(p.pixels, [&](i64 i, i64 count) {
          const V x = load(a + i, count);
          // Beyond the plane's end gradients are read as zeros.
          const V h = arrived<kAct>(vfma<V>(x, s, o), plus, minus, i, count);
          e += h;
          d = vfma<V>(h, x - middle, d);
        });
        fast[0] = e, fast[1] = d;
      },
      [&](i64 c, const double* sums) { out[c] = sums[0], out[p.c + c] = sums[1]; });
}

template <Act kAct>
void backward_to(const Params& p, const float* z, const float* g, const float* scale, const float* shift,
                 const float* factors, float* gz, i64 from, i64 end) {
  for (i64 n = 0; n < p.n; ++n)
    for (i64 c = from; c < end; ++c) {
      const Where where(p, c);
      const i64 at = (n * p.c + c) * p.pixels;
      const float* const plus = g + (n * where.outputs + where.plus) * p.pixels;
      const float* const minus = kAct == Act::crelu ? g + (n * where.outputs + where.minus) * p.pixels : nullptr;
      const V s = splat<float>(scale[c]), o = splat<float>(shift[c]);
      const V u = splat<float>(factors[c]), v = splat<float>(factors[p.c + c]);
      const V m = splat<float>(factors[2 * p.c + c]), k = splat<float>(factors[3 * p.c + c]);
      over(p.pixels, [&](i64 i, i64 count) {
        const V x = load(z + at + i, count);
        const V h = arrived<kAct>(vfma<V>(x, s, o), plus, minus, i, count);
        store(gz + at + i, vfma<V>(h, u, vfma<V>(x - m, v, k)), count);
      });
    }
}

#define LK_BY_ACT(FN, ...)                                \
  by_channel(p, [&](i64 from, i64 end) {                  \
    if (p.act == Act::none) FN<Act::none>(__VA_ARGS__);   \
    if (p.act == Act::relu) FN<Act::relu>(__VA_ARGS__);   \
    if (p.act == Act::crelu) FN<Act::crelu>(__VA_ARGS__); \
  })

int apply(const Params& p, const float* z, const float* scale, const float* shift, float* y) {
  return LK_BY_ACT(apply_to, p, z, scale, shift, y, from, end);
}
int reduce(const Params& p, const float* z, const float* g, const float* scale, const float* shift, const float* centre,
           double* sums) {
  return LK_BY_ACT(reduce_to, p, z, g, scale, shift, centre, sums, from, end);
}
int backward(const Params& p, const float* z, const float* g, const float* scale, const float* shift,
             const float* factors, float* gz) {
  return LK_BY_ACT(backward_to, p, z, g, scale, shift, factors, gz, from, end);
}

}  // namespace

namespace lk::channel_norm {
extern const Table LK_CAT(table_, LK_ISA);
const Table LK_CAT(table_, LK_ISA) = {moments, apply, reduce, backward};
}  // namespace lk::channel_norm
