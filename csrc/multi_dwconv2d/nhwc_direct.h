// NHWC forward and input gradient of one kernel at stride 1, whole vectors of channels: pixels are read where they are,
// row after row of a few columns, all channels of a block before the next columns.
#pragma once
#include "multi_dwconv2d/nhwc_pairs.h"

#if defined(__AVX2__)
namespace {
namespace nhwc {

constexpr i64 kDirectBytes = 512;      // channels of a block: a few rows of a tile stay in the first-level cache
constexpr i64 kDirectRow = 8 << 10;    // rows up to this size are walked whole, memory in order
constexpr i64 kPairRow = 32 << 10;     // the same, where rows go by two
constexpr i64 kDirectPast = 8 << 20;   // outputs from this size on bypass the caches
constexpr double kDirectTeam = 200e3;  // multiply-adds below which a team of threads costs more than it saves

inline i64 direct_kernel(const Params& p) {
  i64 k = 0;
  for (i64 m = 0; m < p.num_branches; ++m) k = imax(k, p.branches[m].kernel);
  return k;
}

// Columns of a tile, 0 if none fits: of 5x5 taps, no tile may begin or end one pixel from the border. With 7x7 taps,
// registers of 64 bytes hold a whole tile's sums and a row of taps.
inline int direct_tile(i64 kernel, i64 w) {
  if (kernel == 3 && w >= 7) return w % 8 == 0 || (w % 7 && w > 8) ? 8 : 7;
  if (kVecBytes < 64) return 0;
  if (kernel == 5 && w >= 7 && w % 8 != 1) return w % 8 && w % 7 == 0 ? 7 : 8;
  if (kernel != 7) return 0;
  return w == 7 ? 7 : w % 16 == 0 ? 16 : w % 14 == 0 ? 14 : 0;
}

// Rows of 7x7 outputs go by two where that was measured to be faster: rows are walked whole, so that no pixel comes
// from far twice, and longer ones leave the second-level cache before they are met again.
inline bool by_pairs(const Params& p) {
  return kVecBytes == 64 && !p.exact && direct_kernel(p) == 7 && p.w % kPairTile == 0 &&
         (p.w == 8 || p.w * p.c * 4 <= kPairRow);
}

inline bool goes_direct(const Params& p, bool input) {
  const Strides &in = input ? p.y : p.x, &out = input ? p.x : p.y;
  if (p.layout != Layout::nhwc || p.stride_h != 1 || p.stride_w != 1 || p.c % kLanes<float> != 0 || p.n <= 0 ||
      p.h <= 0 || in.c != 1 || out.c != 1 || !(by_pairs(p) || direct_tile(direct_kernel(p), p.w)) ||
      (p.num_branches > 1 && p.combine != Combine::add))
    return false;
  for (i64 m = 0; m < p.num_branches; ++m) {
    const Branch& b = p.branches[m];
    if (b.dilation != 1 || b.in_start != 0 || b.out_start != 0 || b.channels != p.c) return false;
  }
  return true;
}

// Kernels of V channels, summed over the branches: what sums start from, then taps.
inline void direct_pack(const Params& p, const float* w, const float* bias, bool input, i64 kernel, bool pairs, i64 c,
                        float* to) {
  constexpr int V = kLanes<float>;
  vstore(to, bias ? vload(bias + c) : Vec<float>{});
  to += V;
  const bool sum = p.num_branches > 1;
  if (sum)
    for (i64 t = 0; t < kernel * kernel; ++t) vstore(to + t * V, Vec<float>{});
  for (i64 m = 0; m < p.num_branches; ++m) {
    const Branch& b = p.branches[m];
    const int k = static_cast<int>(b.kernel), area = k * k, skip = static_cast<int>(kernel) - k;
    const float* from = w + b.weight_start + c * area;
    int slot = skip / 2 * static_cast<int>(kernel + 1), column = 0;
    for (int t = 0; t < area;) {
      const int first = t + V <= area ? t : imax(0, area - V), n = imin(V, area - first);
      Vec<float> v[V];
#pragma GCC unroll 16
      for (int l = 0; l < V; ++l) v[l] = n == V ? vload(from + l * area + first) : vload(from + l * area + first, n);
      transpose(v);
      alignas(64) float columns[V * V];
#pragma GCC unroll 16
      for (int l = 0; l < V; ++l) vstore(columns + l * V, v[l]);
      for (; t < first + n; ++t) {
        float* const o = to + (input ? kernel * kernel - 1 - slot : slot) * V;
        const Vec<float> tap = vload(columns + (t - first) * V);
        vstore(o, sum ? vload(o) + tap : tap);
        ++slot;
        if (++column == k) column = 0, slot += skip;
      }
    }
  }
  if (pairs) pair_pack(to);
}

struct Direct {
  const Params& p;
  const float *x, *w;  // w: packed
  float* y;
  Strides in, out;
  i64 kernel, blocks, strips, tile, tiles, row_tiles;  // row_tiles: of a strip
  bool pairs;                                          // of rows
  Rows rows;

  i64 units() const { return p.n * blocks * strips * (tiles / row_tiles); }
  Strip strip(i64 u) const {
    constexpr i64 V = kLanes<float>;
    const i64 cuts = tiles / row_tiles, t = u % cuts, s = u / cuts % strips, b = u / cuts / strips % blocks,
              n = u / cuts / strips / blocks;
    const i64 vecs = p.c / V, v0 = vecs * b / blocks, v1 = vecs * (b + 1) / blocks;
    const i64 step = pairs ? 2 : 1, steps = (p.h + step - 1) / step, i0 = steps * s / strips * step,
              i1 = imin(p.h, steps * (s + 1) / strips * step), j0 = imin(t * tile, p.w - tile);
    return {x + n * in.n + i0 * in.h + j0 * in.w + v0 * V,
            w + v0 * rows.slots * V,
            y + n * out.n + i0 * out.h + j0 * out.w + v0 * V,
            i1 - i0,
            v1 - v0,
            row_tiles,
            i0,
            p.h - i1,
            j0};
  }
  void work(i64 from, i64 to) const {
    for (i64 u = from; u < to; ++u) {
      const Strip s = strip(u), next = strip(u + 1 < to ? u + 1 : u);
      if (kernel == 3) tile == 8 ? direct_strip<3, 8, false>(rows, s, next) : direct_strip<3, 7, false>(rows, s, next);
      if constexpr (kVecBytes == 64) {
        if (kernel == 5)
          tile == 8 ? direct_strip<5, 8, false>(rows, s, next) : direct_strip<5, 7, false>(rows, s, next);
        if (kernel == 7) pairs ? pair_strip(rows, s, next) : sevens(s, next);
      }
    }
  }
  void sevens(const Strip& s, const Strip& next) const {
    if (tile == 7) return direct_strip<7, 7, true>(rows, s, next);
    if (tile == 14)
      return p.w == 14 ? direct_strip<7, 14, true>(rows, s, next) : direct_strip<7, 14, false>(rows, s, next);
    direct_strip<7, 16, false>(rows, s, next);
  }
};

inline int direct(const Params& p, const float* x, const float* w, const float* bias, float* y, bool input) {
  constexpr i64 V = kLanes<float>, kLine = 64 / sizeof(float);
  const i64 kernel = direct_kernel(p), vecs = p.c / V;
  const bool pairs = by_pairs(p);
  const i64 slots = (pairs ? kPairRows * kernel : kernel * kernel) + 1;
  const int threads = static_cast<double>(p.n) * p.h * p.w * p.c * kernel * kernel < kDirectTeam ? 1 : p.threads;
  const Strides &in = input ? p.y : p.x, &out = input ? p.x : p.y;
  const bool lines = reinterpret_cast<std::uintptr_t>(y) % 64 == 0 && (out.w | out.h | out.n) % kLine == 0;
  Direct d{p, x, nullptr, y, in, out, kernel, 0, 1, pairs ? kPairTile : direct_tile(kernel, p.w), 0, 1, pairs, {}};
  d.rows = {p.w, in.h, in.w, out.h, out.w, slots, kCanStream && lines && p.n * out.n * 4 >= kDirectPast};
  d.blocks = (p.c * 4 + kDirectBytes - 1) / kDirectBytes;
  d.tiles = (p.w + d.tile - 1) / d.tile;
  if (pairs || p.w * p.c * 4 <= kDirectRow) d.row_tiles = d.tiles;
  while (d.units() % threads && d.units() < 8 * threads && 2 * d.strips <= p.h) d.strips *= 2;
  float* const packed = static_cast<float*>(scratch(static_cast<std::size_t>(vecs * slots * V) * sizeof(float)));
  if (!packed) return out_of_memory;
  d.w = packed;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (i64 v = 0; v < vecs; ++v) direct_pack(p, w, bias, input, kernel, pairs, v * V, packed + v * slots * V);
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
#endif
