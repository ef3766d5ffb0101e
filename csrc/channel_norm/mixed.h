// The norm of a grouped 1x1 convolution whose output is made in registers, wherever it is needed, and never stored.
#pragma once
#include "channel_norm/passes.h"
#include "lk/job.h"

namespace {

constexpr int kOut = 2;     // channels made at once, of the same inputs
constexpr int kTile = 4;    // vectors of pixels likewise
constexpr i64 kParts = 16;  // that the images are cut into, whatever the threads: sums are those of the parts

struct Mixed {
  const Params& p;
  const Mix& m;
  const float *d, *w;
  i64 inputs = m.inputs / m.groups, outputs = p.c / m.groups;

  i64* order = nullptr;  // of each channel of z, its place in y

  void share(Arena& a) { order = a.take<i64>(p.c); }
  void prepare() {
#pragma omp for schedule(static)
    for (i64 c = 0; c < p.c; ++c) order[c] = Where(p, c).plus;
  }
  void finish(double*) const {}
  i64 at(i64 n, i64 c) const { return (n * p.c + order[c]) * p.pixels; }
};

template <int P>
LK_INLINE V piece(const float* from, int i, i64 count) {
  if constexpr (P == 1) return load(from, count);
  return vload<float>(from + i * L);
}
template <int P>
LK_INLINE void put(float* to, V v, int i, i64 count) {
  if constexpr (P == 1)
    store(to, v, count);
  else
    vstore<float>(to + i * L, v);
}

// z += w d for kOut channels and P vectors of pixels, of the last of which `count` are there.
template <int P>
LK_INLINE void mix(const Mixed& a, const float* d, const float* w, i64 count, V (*z)[P]) {
  for (i64 j = 0; j < a.inputs; ++j, d += a.p.pixels) {
    const V u = splat<float>(w[j]), v = splat<float>(w[a.inputs + j]);
#pragma GCC unroll 4
    for (int i = 0; i < P; ++i) {
      const V x = piece<P>(d, i, count);
      z[0][i] = vfma<V>(x, u, z[0][i]);
      z[1][i] = vfma<V>(x, v, z[1][i]);
    }
  }
}

template <bool kGradient>
struct Moments : Mixed {
  const float* g;
  float* shift = nullptr;
  i64 sums() const { return 4 * p.c; }

  void share(Arena& a) {
    Mixed::share(a);
    shift = a.take<float>(p.c);
  }
  // Distances are taken from the first image's mean, so that a large mean costs no accuracy.
  void prepare() {
    Mixed::prepare();
#pragma omp for schedule(static)
    for (i64 c = 0; c < p.c; ++c) {
      double mean = 0;
      for (i64 j = 0; j < inputs; ++j) {
        V sum{};
        over(p.pixels, [&](i64 i, i64 count) { sum += load(d + (c / outputs * inputs + j) * p.pixels + i, count); });
        mean += total(sum) * w[c * inputs + j];
      }
      shift[c] = static_cast<float>(mean / static_cast<double>(p.pixels));
    }
  }
  // From sums of distances to what Table::moments gives.
  void finish(double* found) const {
    const double count = static_cast<double>(p.n * p.pixels);
    for (i64 c = 0; c < p.c; ++c) {
      double *mean = found + c, *variance = mean + p.c, *e = variance + p.c, *f = e + p.c;
      const double off = *mean / count, square = *variance / count - off * off;
      *mean = shift[c] + off;
      *variance = square < 0 ? 0 : square;
      *f -= off * *e;
    }
  }

  template <int P>
  LK_INLINE void tile(i64 n, i64 c, bool, const float* x, i64 from, i64 count, V* fast) const {
    V z[kOut][P];
#pragma GCC unroll 4
    for (int o = 0; o < kOut; ++o)
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) z[o][i] = splat<float>(-shift[c + o]);
    mix<P>(*this, x + from, w + c * inputs, count, z);
#pragma GCC unroll 4
    for (int o = 0; o < kOut; ++o) {
      V* const to = fast + c + o;
      V s = to[0], q = to[p.c], e = to[2 * p.c], f = to[3 * p.c];
      const float* const h = kGradient ? g + at(n, c + o) + from : nullptr;
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) {
        // What fills the last vector is no pixel.
        if (P == 1 && count < L)
          for (i64 k = count; k < L; ++k) z[o][i][k] = 0;
        s += z[o][i];
        q = vfma<V>(z[o][i], z[o][i], q);
        if constexpr (kGradient) {
          const V k = piece<P>(h, i, count);
          e += k;
          f = vfma<V>(k, z[o][i], f);
        }
      }
      to[0] = s, to[p.c] = q;
      if constexpr (kGradient) to[2 * p.c] = e, to[3 * p.c] = f;
    }
  }
};

struct Apply : Mixed {
  const float *scale, *shift, *base;
  float* y;
  i64 sums() const { return 0; }

  template <int P>
  LK_INLINE void tile(i64 n, i64 c, bool, const float* x, i64 from, i64 count, V*) const {
    V z[kOut][P] = {};
    mix<P>(*this, x + from, w + c * inputs, count, z);
#pragma GCC unroll 4
    for (int o = 0; o < kOut; ++o) {
      const i64 to = at(n, c + o) + from;
      const V s = splat<float>(scale[c + o]), e = splat<float>(shift[c + o]);
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) {
        V t = vfma<V>(z[o][i], s, e);
        if (p.act == Act::relu) t = rectified(t);
        put<P>(y + to, base ? t + piece<P>(base + to, i, count) : t, i, count);
      }
    }
  }
};

// The gradient of what the activation read, and what it read it from.
struct Arriving : Mixed {
  const float *g, *scale, *shift;

  template <int P>
  LK_INLINE void arrive(i64 n, i64 c, const float* x, i64 from, i64 count, V (*z)[P], V (*h)[P]) const {
#pragma GCC unroll 4
    for (int o = 0; o < kOut; ++o)
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) z[o][i] = V{};
    mix<P>(*this, x + from, w + c * inputs, count, z);
#pragma GCC unroll 4
    for (int o = 0; o < kOut; ++o) {
      const float* const arrived = g + at(n, c + o) + from;
      const V s = splat<float>(scale[c + o]), e = splat<float>(shift[c + o]);
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) {
        h[o][i] = piece<P>(arrived, i, count);
        if (p.act == Act::relu) h[o][i] = passed(vfma<V>(z[o][i], s, e), h[o][i]);
      }
    }
  }
};

struct Reduce : Arriving {
  const float* centre;
  i64 sums() const { return 2 * p.c; }

  template <int P>
  LK_INLINE void tile(i64 n, i64 c, bool, const float* x, i64 from, i64 count, V* fast) const {
    V z[kOut][P], h[kOut][P];
    arrive<P>(n, c, x, from, count, z, h);
#pragma GCC unroll 4
    for (int o = 0; o < kOut; ++o) {
      V* const to = fast + c + o;
      V e = to[0], f = to[p.c];
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) e += h[o][i], f = vfma<V>(h[o][i], z[o][i] - centre[c + o], f);
      to[0] = e, to[p.c] = f;
    }
  }
};

struct Back : Arriving {
  const float* factors;
  float* gd;
  i64 sums() const { return p.c * inputs; }

  template <int P>
  LK_INLINE void tile(i64 n, i64 c, bool more, const float* x, i64 from, i64 count, V* fast) const {
    V z[kOut][P], h[kOut][P];
    arrive<P>(n, c, x, from, count, z, h);
#pragma GCC unroll 4
    for (int o = 0; o < kOut; ++o) {
      const float* const f = factors + c + o;
      const V u = splat<float>(f[0]), v = splat<float>(f[p.c]), e = splat<float>(f[3 * p.c]);
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) h[o][i] = vfma<V>(h[o][i], u, vfma<V>(z[o][i] - f[2 * p.c], v, e));
    }
    float* to = gd + (x - d) - n * (m.planes - m.inputs) * p.pixels + from;
    const float* a = w + c * inputs;
    V* const sum = fast + c * inputs;
    x += from;
    for (i64 j = 0; j < inputs; ++j, x += p.pixels, to += p.pixels) {
      const V u = splat<float>(a[j]), v = splat<float>(a[inputs + j]);
      V s = sum[j], t = sum[inputs + j];
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) {
        const V k = piece<P>(x, i, count), before = more ? piece<P>(to, i, count) : V{};
        s = vfma<V>(h[0][i], k, s);
        t = vfma<V>(h[1][i], k, t);
        put<P>(to, vfma<V>(h[0][i], u, vfma<V>(h[1][i], v, before)), i, count);
      }
      sum[j] = s, sum[inputs + j] = t;
    }
  }
};

// A pass over all images, and its sums.
template <class Pass>
struct Images {
  Pass pass;
  double* out;
  i64 parts = smaller(kParts, pass.p.n);
  V* fast = nullptr;
  double* slow = nullptr;
  double* totals = nullptr;

  void share(Arena& a) {
    totals = a.take<double>(parts * pass.sums());
    pass.share(a);
  }
  void own(Arena& a) {
    fast = a.take<V>(pass.sums());
    slow = a.take<double>(pass.sums());
  }
  void flush() {
    for (i64 e = 0; e < pass.sums(); ++e) slow[e] += total(fast[e]), fast[e] = V{};
  }
  void image(i64 n) const {
    const float* x = pass.d + n * pass.m.planes * pass.p.pixels;
    for (i64 first = 0; first < pass.p.c; first += pass.outputs, x += pass.inputs * pass.p.pixels)
      for (i64 c = first; c < first + pass.outputs; c += kOut) {
        i64 i = 0;
        for (; i + kTile * L <= pass.p.pixels; i += kTile * L)
          pass.template tile<kTile>(n, c, c > first, x, i, L, fast);
        for (; i < pass.p.pixels; i += L)
          pass.template tile<1>(n, c, c > first, x, i, smaller(L, pass.p.pixels - i), fast);
      }
  }
  void work() {
    const i64 count = kFlush / pass.p.pixels < 1 ? 1 : kFlush / pass.p.pixels;
    pass.prepare();
#pragma omp for schedule(static)
    for (i64 q = 0; q < parts; ++q) {
      for (i64 e = 0; e < pass.sums(); ++e) fast[e] = V{}, slow[e] = 0;
      const i64 from = q * pass.p.n / parts, end = (q + 1) * pass.p.n / parts;
      for (i64 n = from; n < end; ++n) {
        image(n);
        if ((n + 1 - from) % count == 0 || n + 1 == end) flush();
      }
      for (i64 e = 0; e < pass.sums(); ++e) totals[q * pass.sums() + e] = slow[e];
    }
#pragma omp for schedule(static)
    for (i64 e = 0; e < pass.sums(); ++e) {
      out[e] = 0;
      for (i64 q = 0; q < parts; ++q) out[e] += totals[q * pass.sums() + e];
    }
  }
};

template <class Pass>
int over_images(const Pass& pass, double* out) {
  Images<Pass> job{pass, out};
  const int error = run_team(job, pass.p.n * pass.p.c * pass.p.pixels > kGrain ? pass.p.threads : 1);
  if (!error) job.pass.finish(out);
  return error;
}

int mixed_moments(const Params& p, const Mix& m, const float* d, const float* w, const float* g, double* sums) {
  const Mixed mixed{p, m, d, w};
  return g ? over_images(Moments<true>{mixed, g}, sums) : over_images(Moments<false>{mixed, g}, sums);
}
int mixed_apply(const Params& p, const Mix& m, const float* d, const float* w, const float* scale, const float* shift,
                const float* base, float* y) {
  return over_images(Apply{{p, m, d, w}, scale, shift, base, y}, nullptr);
}
int mixed_reduce(const Params& p, const Mix& m, const float* d, const float* w, const float* g, const float* scale,
                 const float* shift, const float* centre, double* sums) {
  return over_images(Reduce{{{p, m, d, w}, g, scale, shift}, centre}, sums);
}
int mixed_backward(const Params& p, const Mix& m, const float* d, const float* w, const float* g, const float* scale,
                   const float* shift, const float* factors, float* gd, double* gw) {
  return over_images(Back{{{p, m, d, w}, g, scale, shift}, factors, gd}, gw);
}

}  // namespace
