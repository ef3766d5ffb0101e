// NHWC forward and input gradient of one 3x3 kernel at stride 1, whole vectors of channels: pixels are read where they
// are, row after row of a few columns, all channels of a block before the next row.
#pragma once
#include "multi_dwconv2d/nhwc_plan.h"

namespace {
namespace nhwc {

constexpr i64 kDirectBytes = 512;      // channels of a block: a few rows of a tile stay in the first-level cache
constexpr i64 kDirectPast = 8 << 20;   // outputs from this size on bypass the caches
constexpr double kDirectTeam = 200e3;  // multiply-adds below which a team of threads costs more than it saves

// Rows of TW columns and `vecs` vectors of channels.
struct Strip {
  const float *x, *w;  // pixel of the first output; packed weights of the first vector: what sums start from, then taps
  float* y;
  i64 rows, vecs, above, below, left, right;  // above to right: pixels of the map beyond the strip
};
// What strips have in common.
struct Rows {
  i64 x_row, x_col, y_row, y_col, slots;
  bool past;  // the caches
};

template <int K, int TW>
LK_INLINE void direct_run(Vec<float>* acc, const float* x, i64 step, const float* w, i64 left, i64 right) {
  constexpr int V = kLanes<float>, R = K / 2;
  Vec<float> k[K];
#pragma GCC unroll 8
  for (int v = 0; v < K; ++v) k[v] = vload(w + v * V);
  x -= R * step;
#pragma GCC unroll 32
  for (int q = -R; q < TW + R; ++q, x += step) {
    LK_OPAQUE(x);
    if (q < 0 && left < -q) continue;
    if (q >= TW && right < q - TW + 1) continue;
    Vec<float> s = vload(x);
    LK_KEEP(s);
#pragma GCC unroll 8
    for (int v = 0; v < K; ++v)
      if (q + R - v >= 0 && q + R - v < TW) acc[q + R - v] = vfma(s, k[v], acc[q + R - v]);
  }
}

// `next`: the strip after this one, whose first rows are fetched with this one's last.
template <int K, int TW>
__attribute__((noinline)) void direct_strip(const Rows& a, const Strip& s, const Strip& next) {
  constexpr int V = kLanes<float>, R = K / 2;
  constexpr i64 kLineVecs = 64 / kVecBytes;
  const i64 x_col = a.x_col, y_col = a.y_col, last = s.rows - 1 + imin(R, s.below);
  for (i64 i = 0; i < s.rows; ++i) {
    const float *x = s.x + i * a.x_row, *w = s.w;
    float* y = s.y + i * a.y_row;
    const i64 from = -imin(R, s.above + i), to = imin(R, s.below + s.rows - 1 - i), row = i + R + 1;
    const float* ahead =
        row <= last ? x + (R + 1) * a.x_row : next.x + (row - last - 1 - imin(R, next.above)) * a.x_row;
    const float* out = i + 1 < s.rows ? y + a.y_row : next.y;
    for (i64 n = 0; n < s.vecs; ++n, x += V, y += V, ahead += V, out += V, w += a.slots * V) {
      Vec<float> acc[TW];
      const Vec<float> init = vload(w);
#pragma GCC unroll 8
      for (int t = 0; t < TW; ++t) acc[t] = init;
      if (n % kLineVecs == 0)
#pragma GCC unroll 8
        for (int t = 0; t < TW; ++t) __builtin_prefetch(ahead + t * x_col, 0, 3);
      if (n % kLineVecs == 0 && !a.past)
#pragma GCC unroll 8
        for (int t = 0; t < TW; ++t) __builtin_prefetch(out + t * y_col, 1, 3);
      for (i64 r = from; r <= to; ++r)
        direct_run<K, TW>(acc, x + r * a.x_row, x_col, w + (1 + (r + R) * K) * V, s.left, s.right);
      float* o = y;
#pragma GCC unroll 8
      for (int t = 0; t < TW; ++t, o += y_col) {
        LK_OPAQUE(o);
        if (a.past)
          vstream(o, acc[t]);
        else
          vstore(o, acc[t]);
      }
    }
  }
}

inline bool goes_direct(const Params& p, bool input) {
  const Strides &in = input ? p.y : p.x, &out = input ? p.x : p.y;
  const Branch& b = p.branches[0];
  return p.layout == Layout::nhwc && p.stride_h == 1 && p.stride_w == 1 && p.num_branches == 1 && b.kernel == 3 &&
         b.dilation == 1 && b.in_start == 0 && b.out_start == 0 && b.channels == p.c && p.c % kLanes<float> == 0 &&
         p.w >= 7 && p.n > 0 && p.h > 0 && in.c == 1 && out.c == 1;
}

struct Direct {
  const Params& p;
  const float *x, *w;  // w: packed
  float* y;
  Strides in, out;
  i64 blocks, strips, tile, tiles;
  Rows rows;

  i64 units() const { return p.n * blocks * strips * tiles; }
  Strip strip(i64 u) const {
    constexpr i64 V = kLanes<float>;
    const i64 t = u % tiles, s = u / tiles % strips, b = u / tiles / strips % blocks, n = u / tiles / strips / blocks;
    const i64 vecs = p.c / V, v0 = vecs * b / blocks, v1 = vecs * (b + 1) / blocks;
    const i64 i0 = p.h * s / strips, i1 = p.h * (s + 1) / strips, j0 = imin(t * tile, p.w - tile);
    return {x + n * in.n + i0 * in.h + j0 * in.w + v0 * V,
            w + v0 * rows.slots * V,
            y + n * out.n + i0 * out.h + j0 * out.w + v0 * V,
            i1 - i0,
            v1 - v0,
            i0,
            p.h - i1,
            j0,
            p.w - j0 - tile};
  }
  void work(i64 from, i64 to) const {
    for (i64 u = from; u < to; ++u) {
      const Strip s = strip(u), next = strip(u + 1 < to ? u + 1 : u);
      tile == 8 ? direct_strip<3, 8>(rows, s, next) : direct_strip<3, 7>(rows, s, next);
    }
  }
};

inline int direct(const Params& p, const float* x, const float* w, const float* bias, float* y, bool input) {
  constexpr i64 V = kLanes<float>, K = 3, kLine = 64 / sizeof(float);
  const i64 vecs = p.c / V, slots = K * K + 1;
  const int threads = static_cast<double>(p.n) * p.h * p.w * p.c * K * K < kDirectTeam ? 1 : p.threads;
  const Strides &in = input ? p.y : p.x, &out = input ? p.x : p.y;
  const bool lines = reinterpret_cast<std::uintptr_t>(y) % 64 == 0 && (out.w | out.h | out.n) % kLine == 0;
  Direct d{p, x, nullptr, y, in, out, 0, 1, 0, 0, {}};
  d.rows = {in.h, in.w, out.h, out.w, slots, kCanStream && lines && p.n * out.n * 4 >= kDirectPast};
  d.blocks = (p.c * 4 + kDirectBytes - 1) / kDirectBytes;
  d.tile = p.w % 8 == 0 || (p.w % 7 && p.w > 8) ? 8 : 7;
  d.tiles = (p.w + d.tile - 1) / d.tile;
  while (d.units() % threads && d.units() < 8 * threads && 2 * d.strips <= p.h) d.strips *= 2;
  float* const packed = static_cast<float*>(scratch(static_cast<std::size_t>(vecs * slots * V) * sizeof(float)));
  if (!packed) return out_of_memory;
  d.w = packed;
  const float* const taps = w + p.branches[0].weight_start;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (i64 v = 0; v < vecs; ++v) {
      float* to = packed + v * slots * V;
      for (i64 l = 0; l < V; ++l) {
        to[l] = bias ? bias[v * V + l] : 0.0f;
        const float* from = taps + (v * V + l) * K * K;
        for (i64 t = 0; t < K * K; ++t) to[(1 + t) * V + l] = from[input ? K * K - 1 - t : t];
      }
    }
#pragma omp for schedule(static)
    for (int t = 0; t < threads; ++t) {
      d.work(d.units() * t / threads, d.units() * (t + 1) / threads);
      if (d.rows.past) stream_fence();
    }
  }
  return ok;
}

}  // namespace nhwc
}  // namespace
