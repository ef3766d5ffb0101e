// Compiled once for each instruction set, with LK_ISA naming it.
#include "channel_norm/mixed.h"
#include "channel_norm/passes.h"
#include "lk/entry.h"

namespace {

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
        if constexpr (kGradient) b = g + (n * p.g_planes + Where(p, c).plus) * p.pixels;
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

template <Act kAct>
void apply_to(const Params& p, const float* z, const float* scale, const float* shift, const float* base, float* y,
              i64 from, i64 end) {
  for (i64 n = 0; n < p.n; ++n)
    for (i64 c = from; c < end; ++c) {
      const Where where(p, c);
      const float* const a = z + (n * p.c + c) * p.pixels;
      const i64 plus = (n * where.outputs + where.plus) * p.pixels;
      const i64 minus = (n * where.outputs + where.minus) * p.pixels;
      const V s = splat<float>(scale[c]), o = splat<float>(shift[c]);
      auto put = [&](i64 i, V t, i64 count) { store(y + i, base ? t + load(base + i, count) : t, count); };
      over(p.pixels, [&](i64 i, i64 count) {
        const V t = vfma<V>(load(a + i, count), s, o);
        put(plus + i, kAct == Act::none ? t : rectified(t), count);
        if constexpr (kAct == Act::crelu) put(minus + i, rectified(-t), count);
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

int apply(const Params& p, const float* z, const float* scale, const float* shift, const float* base, float* y) {
  return LK_BY_ACT(apply_to, p, z, scale, shift, base, y, from, end);
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
const Table LK_CAT(table_, LK_ISA) = {moments,       apply,       reduce,       backward,
                                      mixed_moments, mixed_apply, mixed_reduce, mixed_backward};
}  // namespace lk::channel_norm
