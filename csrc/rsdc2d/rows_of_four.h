// Windows of 3x3 with most of their taps, four rows of outputs at once by half of the products: Winograd's F(4, 3)
// down the columns (the points 0, 3/4, -3/4, 3/2, -3/2 and infinity), every tap by itself along the rows. Planes of
// float32, pixels in the vector; forward, and the input gradient as a convolution of the output's.
#pragma once
#include "rsdc2d/dense.h"

namespace {
namespace rsdc {

constexpr i64 kFours = 6;                            // mixed rows that four rows of outputs are made of
constexpr int kMixed = 4;                            // outputs of a block
constexpr i64 kChainSources = 16;                    // that are summed by themselves: a long sum rounds more
constexpr i64 kPastFours = 16 << 20;                 // outputs from this size on bypass the caches
constexpr i64 kMixedBytes = 192 << 10;               // of mixed rows, in the second-level cache
constexpr int kTileFours = kVecBytes == 64 ? 6 : 2;  // fours of rows that a tile has at most

// Sums over a convolution's outputs, taken where these are made.
struct Sums {
  const float* g;  // [n, co of planes, h, w]
  i64 groups;      // of the shuffle that g's channels went through
  i64 planes;
  double* out;  // [4, co]: mean, variance, the sums of g and of g * (y - mean)

  i64 place(i64 o, i64 channels) const { return o % (channels / groups) * groups + o / (channels / groups); }
};

#if defined(__AVX2__)

inline bool in_fours(const Params& p, bool backward) {
  const i64 outputs = backward ? group_in(p) : group_out(p), sources = backward ? group_out(p) : group_in(p);
  return !p.exact && p.dtype == DType::f32 && p.layout == Layout::nchw && p.kernel == 3 && p.taps >= 7 &&
         p.stride_h * p.stride_w * p.dilation_h * p.dilation_w * p.pad_h * p.pad_w == 1 && p.w % 8 == 0 && p.h > 2 &&
         outputs % kMixed == 0 && sources > 1 &&
         kFours * sources * (p.w + (p.w % 16 ? 8 : 16)) * 4 * kTileFours <= kMixedBytes;
}

template <int L>
struct Pixels {
  typedef float type __attribute__((vector_size(L * 4), aligned(4)));
};

// The points, of which 3/4 and 3/2 leave the least rounding: 1.4 times that of sums tap by tap, where 1 and 2 have 2.
constexpr float kA = 0.75f, kB = 1.5f, kAA = kA * kA, kBB = kB * kB;

// What taps of three rows are to each of the mixed rows.
inline void mix_taps(const float* w, float* u) {
  constexpr float a = 1 / (2 * kAA * (kAA - kBB)), b = 1 / (2 * kBB * (kBB - kAA));
  const float even_a = w[0] + kAA * w[2], even_b = w[0] + kBB * w[2];
  u[0] = w[0] / (kAA * kBB);
  u[1] = (even_a + kA * w[1]) * a;
  u[2] = (even_a - kA * w[1]) * a;
  u[3] = (even_b + kB * w[1]) * b;
  u[4] = (even_b - kB * w[1]) * b;
  u[5] = w[2];
}

template <class V>
LK_INLINE void mix_rows(const V* d, V* m) {
  const V even_a = d[4] - kBB * d[2], odd_a = d[3] - kBB * d[1], even_b = d[4] - kAA * d[2], odd_b = d[3] - kAA * d[1];
  m[0] = kAA * kBB * d[0] - (kAA + kBB) * d[2] + d[4];
  m[1] = even_a + kA * odd_a;
  m[2] = even_a - kA * odd_a;
  m[3] = even_b + kB * odd_b;
  m[4] = even_b - kB * odd_b;
  m[5] = kAA * kBB * d[1] - (kAA + kBB) * d[3] + d[5];
}

template <class V>
LK_INLINE void unmix_rows(const V* m, V bias, V* y) {
  const V even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
  y[0] = m[0] + even_a + even_b + bias;
  y[1] = kA * odd_a + kB * odd_b + bias;
  y[2] = kAA * even_a + kBB * even_b + bias;
  y[3] = kA * kAA * odd_a + kB * kBB * odd_b + m[5] + bias;
}

// kMixed outputs times P rows of one mixture; `more`: added to what is there.
template <int L, int P>
void fours_tile(const float* x, i64 sources, i64 channel, i64 pitch, const float* w, float* out, bool more) {
  using V = typename Pixels<L>::type;
  V acc[kMixed][P] = {};
  for (; sources > 0; --sources, x += channel)
    for (int tap = 0; tap < 3; ++tap, w += kMixed) {
      const float* at = x + tap - 1;
      V v[P];
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p, at += pitch) {
        __builtin_memcpy(&v[p], at, sizeof(V));
        LK_KEEP(v[p]);
      }
#pragma GCC unroll 4
      for (int r = 0; r < kMixed; ++r) {
        const V k = w[r] - V{};
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) acc[r][p] = v[p] * k + acc[r][p];
      }
    }
#pragma GCC unroll 4
  for (int r = 0; r < kMixed; ++r)
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p, out += L) {
      if (more) {
        V sum;
        __builtin_memcpy(&sum, out, sizeof(V));
        acc[r][p] += sum;
      }
      __builtin_memcpy(out, &acc[r][p], sizeof(V));
    }
}

// Those of one channel, over some of its outputs.
struct Gathered {
  double count, mean, squares, g, products;  // squares and products: of distances from the mean
  void join(const Gathered& more) {
    const double all = count + more.count, away = more.mean - mean, middle = mean + away * more.count / all;
    squares += more.squares + away * away * count * more.count / all;
    products += g * (mean - middle) + more.products + more.g * (more.mean - middle);
    g += more.g;
    mean = middle;
    count = all;
  }
};

using FoursFn = void (*)(const float*, i64, i64, i64, const float*, float*, bool);

template <int L>
FoursFn fours_fn(i64 rows) {
#define LK_T(n) fours_tile<L, n>
#if defined(__AVX512F__)
  static constexpr FoursFn fn[] = {nullptr, LK_T(1), LK_T(2), LK_T(3), LK_T(4), LK_T(5), LK_T(6)};
#else
  static constexpr FoursFn fn[] = {nullptr, LK_T(1), LK_T(2)};
#endif
#undef LK_T
  return fn[rows];
}

template <int L>
struct Fours {
  using V = typename Pixels<L>::type;
  const Plan& g;
  const float *src, *w, *bias;
  float* dst;
  i64 each, all, together;  // fours of rows: of an image, of all, of a unit
  i64 pitch, channel, plane, block;
  bool past;  // the caches
  const Sums* sums;
  float *packed, *rows, *made;
  float *gathered, *shift;  // of each output of a unit: four vectors of sums; what values are counted from
  Gathered* totals;         // [slabs, co]

  Fours(const Plan& plan, const float* s, const float* weight, const float* b, float* d, const Sums* sum)
      : g(plan),
        src(s),
        w(weight),
        bias(b),
        dst(d),
        each(ceil_div(plan.p.h, 4)),
        all(plan.p.n * each),
        together(0),
        pitch(plan.p.w + L),
        channel(0),
        plane(0),
        block(kFours * plan.sources * 3 * kMixed),
        past(L == 16 && d && leaves_in_lines(plan, d) && plan.p.n * plan.dst.n * 4 >= kPastFours),
        sums(sum),
        packed(nullptr),
        rows(nullptr),
        made(nullptr),
        gathered(nullptr),
        shift(nullptr),
        totals(nullptr) {
    const i64 most = kMixedBytes / (kFours * g.sources * pitch * 4) / kTileFours;
    together = kTileFours * larger(1, smaller(most, 4));
    channel = together * pitch;
    plane = g.sources * channel;
  }

  i64 slabs() const { return ceil_div(all, together); }
  void share(Arena& a) {
    packed = a.take<float>(g.p.groups * g.outputs / kMixed * block);
    if (sums) totals = a.take<Gathered>(slabs() * g.p.co);
  }
  void own(Arena& a) {
    rows = a.take<float>(kFours * plane + L);
    made = a.take<float>(kFours * kMixed * kTileFours * L);
    if (!sums) return;
    gathered = a.take<float>(4 * g.outputs * L);
    shift = a.take<float>(g.outputs);
  }

  // A block's weights: [mixture][source][tap along the row][output].
  void pack(i64 b) {
    const i64 blocks = g.outputs / kMixed, group = b / blocks, first = b % blocks * kMixed;
    const i64 gi = group_in(g.p), go = group_out(g.p), mixture = g.sources * 3 * kMixed;
    for (i64 s = 0; s < g.sources; ++s)
      for (i64 r = 0; r < kMixed; ++r) {
        const i64 o = group * go + (g.backward ? s : first + r), c = g.backward ? first + r : s;
        float window[3][3] = {};  // columns of rows
        for (i64 t = 0; t < g.p.taps; ++t) {
          const i64 cell = g.p.cells[set_of(g.p, o) * g.p.taps + t];
          if (cell < 0 || cell >= 9) continue;
          const i64 u = g.backward ? 2 - cell / 3 : cell / 3, v = g.backward ? 2 - cell % 3 : cell % 3;
          window[v][u] += w[(o * gi + c) * g.p.taps + t];
        }
        for (i64 v = 0; v < 3; ++v) {
          float mixed[kFours];
          mix_taps(window[v], mixed);
          for (i64 i = 0; i < kFours; ++i) packed[b * block + i * mixture + (s * 3 + v) * kMixed + r] = mixed[i];
        }
      }
  }

  // Mixed rows of fours [from, from + count).
  void fill(i64 group, i64 from, i64 count) {
    for (i64 k = 0; k < count; ++k) {
      const i64 n = (from + k) / each, i0 = (from + k) % each * 4 - 1;
      const float* const image = src + n * g.src.n + group * g.sources * g.src.c;
      for (i64 c = 0; c < g.sources; ++c) {
        const float* const map = image + c * g.src.c;
        float* const to = rows + c * channel + k * pitch + L;
        for (i64 j = 0; j < g.p.w; j += L) {
          V d[6], m[kFours];
#pragma GCC unroll 6
          for (i64 i = 0; i < 6; ++i) {
            d[i] = V{};
            if (i0 + i >= 0 && i0 + i < g.p.h) __builtin_memcpy(&d[i], map + (i0 + i) * g.src.h + j, sizeof(V));
          }
          mix_rows(d, m);
#pragma GCC unroll 6
          for (i64 i = 0; i < kFours; ++i) __builtin_memcpy(to + i * plane + j, &m[i], sizeof(V));
        }
      }
    }
  }

  // From the mixtures of a tile to four rows of each of its outputs.
  void leave(i64 group, i64 b, i64 from, i64 count, i64 j) {
    for (i64 p = 0; p < count; ++p) {
      const i64 n = (from + p) / each, i0 = (from + p) % each * 4, height = smaller(4, g.p.h - i0);
      for (i64 r = 0; r < kMixed; ++r) {
        const i64 o = group * g.outputs + b * kMixed + r;
        V y[4];
        unmix(r, p, count, bias ? bias[o] : 0.0f, y);
        float* const to = dst + n * g.dst.n + o * g.dst.c + i0 * g.dst.h + j;
        for (i64 i = 0; i < height; ++i) {
          if constexpr (L == 16)
            if (past) {
              vstream(to + i * g.dst.h, reinterpret_cast<const Vec<float>&>(y[i]));
              continue;
            }
          __builtin_memcpy(to + i * g.dst.h, &y[i], sizeof(V));
        }
      }
    }
  }

  LK_INLINE void unmix(i64 r, i64 p, i64 count, float constant, V* y) {
    V m[kFours];
#pragma GCC unroll 6
    for (i64 i = 0; i < kFours; ++i) __builtin_memcpy(&m[i], made + ((i * kMixed + r) * count + p) * L, sizeof(V));
    unmix_rows(m, constant - V{}, y);
  }

  // The same into sums.
  void gather(i64 group, i64 b, i64 from, i64 count, i64 j) {
    for (i64 r = 0; r < kMixed; ++r) {
      const i64 own = b * kMixed + r, o = group * g.outputs + own, size = g.p.h * g.p.w;
      const float* const arrived = sums->g + sums->place(o, g.p.co) * size + j;
      V sum[4];
      __builtin_memcpy(sum, gathered + own * 4 * L, sizeof sum);
      for (i64 p = 0; p < count; ++p) {
        const i64 n = (from + p) / each, i0 = (from + p) % each * 4, height = smaller(4, g.p.h - i0);
        V y[4];
        unmix(r, p, count, 0, y);
        // Distances are taken from a value within the image, so that a large mean costs no accuracy.
        if (shift[own] != shift[own]) {
          const float value = y[1][L / 2];
          shift[own] = value - value == 0 ? value : 0.0f;
        }
        const V away = shift[own] - V{};
        const float* const at = arrived + n * sums->planes * size + i0 * g.p.w;
#pragma GCC unroll 4
        for (i64 i = 0; i < 4; ++i) {
          if (i >= height) break;
          const V t = y[i] - away;
          sum[0] += t;
          sum[1] = t * t + sum[1];
          V h;
          __builtin_memcpy(&h, at + i * g.p.w, sizeof h);
          sum[2] += h;
          sum[3] = h * t + sum[3];
        }
      }
      __builtin_memcpy(gathered + own * 4 * L, sum, sizeof sum);
    }
  }

  void start() {
    clear(gathered, 4 * g.outputs * L);
    for (i64 o = 0; o < g.outputs; ++o) shift[o] = __builtin_nanf("");
  }

  // What a unit has gathered.
  void finish(i64 group, i64 slab, i64 from, i64 count) {
    double rows = 0;
    for (i64 k = from; k < from + count; ++k) rows += static_cast<double>(smaller(4, g.p.h - k % each * 4));
    const double pixels = rows * static_cast<double>(g.p.w);
    for (i64 o = 0; o < g.outputs; ++o) {
      double sum[4] = {};
      for (i64 i = 0; i < 4 * L; ++i) sum[i / L] += gathered[o * 4 * L + i];
      const double off = sum[0] / pixels;
      totals[slab * g.p.co + group * g.outputs + o] = {pixels, shift[o] + off, sum[1] - off * sum[0], sum[2],
                                                       sum[3] - off * sum[2]};
    }
  }

  void leave_sums(i64 o) {
    Gathered all = totals[o];
    for (i64 slab = 1; slab < slabs(); ++slab) all.join(totals[slab * g.p.co + o]);
    double* const to = sums->out + o;
    to[0] = all.mean;
    to[g.p.co] = all.squares < 0 ? 0 : all.squares / all.count;
    to[2 * g.p.co] = all.g;
    to[3 * g.p.co] = all.products;
  }

  void unit(i64 u) {
    const i64 group = u % g.p.groups, from = u / g.p.groups * together, count = smaller(together, all - from);
    fill(group, from, count);
    if (sums) start();
    for (i64 tiles = ceil_div(count, kTileFours), k = 0; tiles > 0; --tiles) {
      const i64 deep = ceil_div(count - k, tiles);
      const FoursFn fn = fours_fn<L>(deep);
      for (i64 j = 0; j < g.p.w; j += L)
        for (i64 b = 0; b < g.outputs / kMixed; ++b) {
          const float* const weights = packed + (group * (g.outputs / kMixed) + b) * block;
          for (i64 i = 0; i < kFours; ++i) {
            const float *x = rows + i * plane + k * pitch + L + j, *u = weights + i * (block / kFours);
            for (i64 c = 0; c < g.sources; c += kChainSources)
              fn(x + c * channel, smaller(kChainSources, g.sources - c), channel, pitch, u + c * 3 * kMixed,
                 made + i * kMixed * deep * L, c > 0);
          }
          if (sums)
            gather(group, b, from + k, deep, j);
          else
            leave(group, b, from + k, deep, j);
        }
      k += deep;
    }
    if (sums) finish(group, u / g.p.groups, from, count);
  }

  void work() {
#pragma omp for schedule(static)
    for (i64 b = 0; b < g.p.groups * g.outputs / kMixed; ++b) pack(b);
    clear(rows, kFours * plane + L);
#pragma omp for schedule(static)
    for (i64 u = 0; u < slabs() * g.p.groups; ++u) unit(u);
    if (past) stream_fence();
    if (!sums) return;
#pragma omp for schedule(static)
    for (i64 o = 0; o < g.p.co; ++o) leave_sums(o);
  }
};

// With sums there is no dst.
inline int fours_conv(const Params& p, bool backward, const float* src, const float* w, const float* bias, float* dst,
                      const Sums* sums = nullptr) {
  const Plan g = make_plan(p, backward);
#if defined(__AVX512F__)
  if (p.w % 16 == 0) {
    Fours<16> job(g, src, w, bias, dst, sums);
    return run_job(job, p);
  }
#endif
  Fours<8> job(g, src, w, bias, dst, sums);
  return run_job(job, p);
}

#else

inline bool in_fours(const Params&, bool) { return false; }
inline int fours_conv(const Params&, bool, const float*, const float*, const float*, float*, const Sums* = nullptr) {
  return unsupported;
}

#endif

}  // namespace rsdc
}  // namespace
