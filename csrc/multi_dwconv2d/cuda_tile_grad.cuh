// The weight gradient of a kernel of dilation 1 in fp32, on tiles in shared memory: a thread keeps the sums of all taps
// in registers while it goes over 4 x 4 outputs of one tile after another; the block's threads are added at the end, in
// a fixed order.
#pragma once
#include "multi_dwconv2d/cuda_tile.cuh"

namespace lk::multi_dwconv2d::cuda {

struct TileGradArgs {
  TileArgs x;  // its `in` is the input; out, steps and bias are not used
  const void* g;
  i64 x_c, g_c, g_slab;  // first channels of the slabs; the gradients of `slabs` slabs are added
  int slabs, tiles, tiles_a_block;
  float* work;
  i64 weights;
  // The branches whose kernels lie in the centre of this one.
  int branches;
};

template <bool kNhwc, int S, int K>
struct TileGrad {
  static constexpr int kThreads = kNhwc ? 256 : 128, kBlocks = kNhwc ? 2 : 4, kWarps = kThreads / kWarp;
  static constexpr int kTaps = kNhwc ? 8 : K * K;  // whose sums of all warps meet in shared memory at once
  using Args = TileGradArgs;
  using Plan = TilePlan<kNhwc, S>;

  static int shared_bytes(const Tile& t) {
    const int tile = Plan::floats(t), sums = kWarps * kTaps * (kNhwc ? kWarp : 1);
    return 4 * (tile > sums ? tile : sums);
  }

  template <class T>
  static LK_DEVICE void load(const TileGradArgs& a, float (&g)[kTileEdge][kTileEdge], int n, int c, int i, int j) {
    const T* from = static_cast<const T*>(a.g) + at(a.x.out_s, n, a.g_c + c, i, j);
    LK_UNROLL for (int r = 0; r < kTileEdge; ++r) { LK_UNROLL for (int e = 0; e < kTileEdge; ++e) g[r][e] = 0; }
    for (int s = 0; s < a.slabs; ++s, from += a.g_slab * a.x.out_s.c) {
      LK_UNROLL for (int r = 0; r < kTileEdge; ++r) {
        if (i + r >= a.x.ho) break;
        const T* row = from + r * a.x.out_s.h;
        if (!kNhwc && a.x.vectors && j + 3 < a.x.wo) {
          const Quad v = load4<T>(row);
          LK_UNROLL for (int e = 0; e < kTileEdge; ++e) g[r][e] += v.v[e];
        } else {
          LK_UNROLL for (int e = 0; e < kTileEdge; ++e) {
            if (j + e < a.x.wo) g[r][e] += to_acc(row[e * a.x.out_s.w]);
          }
        }
      }
    }
  }

  static LK_DEVICE void write(const TileGradArgs& a, int c, int tap, float sum) {
    const int u = tap / K, v = tap % K;
    for (int m = 0; m < a.branches; ++m) {
      const int k = static_cast<int>(a.x.branch[m].kernel), y = u - (K - k) / 2, x = v - (K - k) / 2;
      if (y >= 0 && y < k && x >= 0 && x < k)
        a.work[block_x() * a.weights + a.x.branch[m].weight_start + (static_cast<i64>(c) * k + y) * k + x] = sum;
    }
  }

  static LK_DEVICE void run(const Args& a) {
    const Tile& t = a.x.tile;
    float* tile = reinterpret_cast<float*>(shared());
    const int lane = tid() % kWarp, warp = tid() / kWarp, unit = kNhwc ? kWarp : 1;
    const int piece = kNhwc ? warp : tid(), across = t.columns / kTileEdge, down = t.rows / kTileEdge;
    const bool busy = piece < t.images * across * down;
    const int j = piece % across * kTileEdge, i = piece / across % down * kTileEdge, image = piece / (across * down);
    const int c = block_y() * unit + (kNhwc ? lane : 0);

    float sums[K * K];
    LK_UNROLL for (int q = 0; q < K * K; ++q) sums[q] = 0;
    const int first = static_cast<int>(block_x()) * a.tiles_a_block;
    const int last = first + a.tiles_a_block < a.tiles ? first + a.tiles_a_block : a.tiles;
    for (int index = first; index < last; ++index) {
      const Plan plan(a.x, index, block_y());
      if (index > first) sync();
      plan.load(a.x, tile, a.x_c, false, kThreads);
      sync();
      const int n = plan.n0 + image;
      if (!busy || n >= a.x.n || c >= a.x.c || plan.j0 + j >= a.x.wo || plan.i0 + i >= a.x.ho) continue;
      float g[kTileEdge][kTileEdge];
      if (a.x.dtype == DType::f32) {
        load<float>(a, g, n, c, plan.i0 + i, plan.j0 + j);
      } else if (a.x.dtype == DType::bf16) {
        load<bf16>(a, g, n, c, plan.i0 + i, plan.j0 + j);
      } else {
        load<f16>(a, g, n, c, plan.i0 + i, plan.j0 + j);
      }
      const int line = plan.columns * unit, edge = t.reach - K / 2;
      const float* from =
          tile + ((image * plan.rows + i * S + edge) * plan.columns + j * S + (kNhwc ? edge : 0)) * unit;
      if (kNhwc) from += lane;
      LK_UNROLL for (int q = 0; q < (kTileEdge - 1) * S + K; ++q) {
        Window<kNhwc, S, K> in;
        in.load(from + q * line);
        LK_UNROLL for (int r = 0; r < kTileEdge; ++r) {
          const int u = q - r * S;
          if (u < 0 || u >= K) continue;
          LK_UNROLL for (int v = 0; v < K; ++v) {
            LK_UNROLL for (int e = 0; e < kTileEdge; ++e) sums[u * K + v] += g[r][e] * in(e, v);
          }
        }
      }
    }

    sync();
    if constexpr (kNhwc) {
      LK_UNROLL for (int q0 = 0; q0 < K * K; q0 += kTaps) {
        LK_UNROLL for (int q = 0; q < kTaps; ++q) {
          if (q0 + q < K * K) tile[(warp * kTaps + q) * kWarp + lane] = sums[q0 + q < K * K ? q0 + q : 0];
        }
        sync();
        float total = 0;
        for (int w = 0; w < kWarps; ++w) total += tile[(w * kTaps + warp) * kWarp + lane];
        if (q0 + warp < K * K && c < a.x.c) write(a, c, q0 + warp, total);
        sync();
      }
    } else {
      LK_UNROLL for (int q = 0; q < K * K; ++q) {
        float sum = sums[q];
        for (int d = kWarp / 2; d; d /= 2) sum += shuffle_xor(sum, d);
        if (lane == 0) tile[warp * K * K + q] = sum;
      }
      sync();
      for (int q = tid(); q < K * K; q += kThreads) {
        float total = 0;
        for (int w = 0; w < kWarps; ++w) total += tile[w * K * K + q];
        write(a, c, q, total);
      }
    }
  }
};

}  // namespace lk::multi_dwconv2d::cuda
