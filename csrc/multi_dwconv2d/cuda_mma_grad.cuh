// The weight gradient of 16-bit nchw on tensor cores: for kernel row u, P_u[output column, input column] sums g x over
// rows of pixels, and a tap's gradient is the sum of one diagonal of P_u, taken once at the end. Sums stay in registers
// over all tiles of a block.
#pragma once
#include "multi_dwconv2d/cuda_mma.cuh"

namespace lk::multi_dwconv2d::cuda {

struct MmaGradArgs {
  MmaMap x, g;
  i64 x_c, g_c;  // first channels of their slabs
  MmaTiles tiles;
  MmaShape x_shape, g_shape;
  float* work;
  i64 weights;
  // The branches whose kernels lie in the centre of this one: one, or all that are added.
  int branches;
  Branch branch[kMmaBranches];
};

template <class T, int K>
struct MmaGrad {
  static constexpr int kThreads = 128, kBlocks = 3, kWarps = kThreads / kWarp, kReach = K / 2, kWide = 3, kZeros = 8;
  using Args = MmaGradArgs;

  static int shared_bytes(const Args& a) {
    const int tiles = 2 * (a.x_shape.numbers() + a.g_shape.numbers()), sums = 4 * kWarps * K * K;
    return kZeros * 2 + (tiles > sums ? tiles : sums);
  }

  static LK_DEVICE void run(const Args& a) {
    u16* zeros = reinterpret_cast<u16*>(shared());  // a line of g that is not there
    u16 *tile = zeros + kZeros, *g_tile = tile + a.x_shape.numbers();
    const int lane = tid() % kWarp, warp = tid() / kWarp, c = block_y();
    if (tid() < kZeros) zeros[tid()] = 0;
    const int pitch = a.x_shape.pitch, lines = a.x_shape.lines, products = a.tiles.images * a.tiles.rows;

    float sums[K][kWide][4];
    LK_UNROLL for (int u = 0; u < K; ++u) {
      LK_UNROLL for (int q = 0; q < kWide; ++q) { LK_UNROLL for (int e = 0; e < 4; ++e) sums[u][q][e] = 0; }
    }
    for (int index = a.tiles.first(); index < a.tiles.last(); ++index) {
      const MmaPlace o(a.tiles, index);
      if (index > a.tiles.first()) sync();
      a.x_shape.load(a.x, tile, a.x_c + c, o.n, o.i - kReach, o.j - kMmaLeft, kThreads);
      a.g_shape.load(a.g, g_tile, a.g_c + c, o.n, o.i, o.j, kThreads);
      sync();
      for (int m0 = warp * kMmaRows; m0 < products; m0 += kWarps * kMmaRows) {
        // Of matrix lane / 8: rows 0-7 or 8-15 of pixels. Lines of g that are not there meet any line of x.
        const int low = m0 + lane % 8, row_g = low + (lane / 16) * 8, row_x = low + (lane / 8 % 2) * 8;
        const int one = row_x < products ? row_x : 0, image = a.tiles.by_rows(one);
        const u16* line = tile + (image * lines + one - image * a.tiles.rows) * pitch;
        for (int q = 0; q < (a.tiles.eights + 1) / 2; ++q) {
          u32 left[4];
          load_columns4(left, row_g < products ? g_tile + row_g * a.g_shape.pitch + 16 * q + lane / 8 % 2 * 8 : zeros);
          LK_UNROLL for (int u = 0; u < K; ++u) {
            u32 right[4], more[2];
            const u16* at = line + u * pitch + 16 * q;
            load_columns4(right, at + lane / 16 * 8);
            load_columns2(more, at + 16);
            multiply<T>(sums[u][0], left[0], left[1], left[2], left[3], right[0], right[1]);
            multiply<T>(sums[u][1], left[0], left[1], left[2], left[3], right[2], right[3]);
            multiply<T>(sums[u][2], left[0], left[1], left[2], left[3], more[0], more[1]);
          }
        }
      }
    }

    sync();
    float* taps = reinterpret_cast<float*>(tile);  // [warp][tap]
    LK_UNROLL for (int u = 0; u < K; ++u) {
      LK_UNROLL for (int v = 0; v < K; ++v) {
        float sum = 0;
        LK_UNROLL for (int q = 0; q < kWide; ++q) {
          LK_UNROLL for (int e = 0; e < 4; ++e) {
            const int output = lane / 4 + 8 * (e / 2), input = 8 * q + lane % 4 * 2 + e % 2 - kMmaLeft;
            if (input - output + K / 2 == v) sum += sums[u][q][e];
          }
        }
        for (int d = kWarp / 2; d; d /= 2) sum += shuffle_xor(sum, d);
        if (lane == 0) taps[(warp * K + u) * K + v] = sum;
      }
    }
    sync();
    if (tid() >= K * K) return;
    float total = 0;
    for (int q = 0; q < kWarps; ++q) total += taps[q * K * K + tid()];
    const int u = tid() / K, v = tid() % K;
    for (int m = 0; m < a.branches; ++m) {
      const int k = static_cast<int>(a.branch[m].kernel), y = u - (K - k) / 2, x = v - (K - k) / 2;
      if (y >= 0 && y < k && x >= 0 && x < k)
        a.work[block_x() * a.weights + a.branch[m].weight_start + (static_cast<i64>(c) * k + y) * k + x] = total;
    }
  }
};

}  // namespace lk::multi_dwconv2d::cuda
