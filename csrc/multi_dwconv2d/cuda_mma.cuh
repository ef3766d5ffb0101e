// 16-bit nchw on tensor cores: along a row of pixels a depthwise convolution is a product with a banded Toeplitz
// matrix. For kernel row u, y[16 rows, 8 columns] += x[16 rows, 16 columns from 4 left of them] T_u[16, 8], one
// instruction; T_u is two registers a thread, held for all tiles of the channel. A left half of a window is the right
// half of the one before, so that each number is read once a kernel row. Products are exact, sums are in fp32. T_u's
// zeros meet every pixel of the window: an Inf or NaN spreads there.
#pragma once
#include "multi_dwconv2d/cuda_args.cuh"

namespace lk::multi_dwconv2d::cuda {

constexpr int kMmaLeft = 4;      // columns of a window left of its outputs, and the most that a kernel may reach
constexpr int kMmaColumns = 32;  // of outputs, in a tile
constexpr int kMmaRows = 16;     // of outputs, in a product
constexpr int kMmaBranches = 3;

// A tensor that tiles are read from; `vector`: 4, 2 or 1 numbers of a row can be read at once.
struct MmaMap {
  const u16* at;
  Strides s;
  int n, h, wide, vector;
};

// Its tile in shared memory: lines of `pitch` numbers read in groups of four, zeros outside the map. Lines are an odd
// number of 16 bytes apart, so that any 8 of them lie in different banks.
struct MmaShape {
  int images, lines, groups, pitch;
  Divider by_lines, by_groups;

  static MmaShape of(int images, int lines, int eights) {
    return {images, lines, 2 * eights, (eights | 1) * 8, Divider::of(lines), Divider::of(2 * eights)};
  }
  bool exact() const {
    const i64 all = static_cast<i64>(images) * lines;
    return all * groups * (groups - 1) < 65536 && all * (lines - 1) < 65536;
  }
  LK_ANYWHERE int numbers() const { return images * lines * pitch; }

  LK_DEVICE void load(const MmaMap& map, u16* tile, i64 channel, int n0, int top, int left, int threads) const {
    const int items = images * lines * groups;
    for (int p = tid(); p < items; p += threads) {
      const int line = by_groups(p), group = p - line * groups, image = by_lines(line);
      const int n = n0 + image, row = top + line - image * lines, column = left + 4 * group;
      u32 lo = 0, hi = 0;
      if (n < map.n && row >= 0 && row < map.h) {
        const u16* from = map.at + at(map.s, n, channel, row, 0);
        if (map.vector == 4 && column >= 0 && column + 3 < map.wide) {
          const Words v = *reinterpret_cast<const Words*>(from + column);
          lo = v.lo;
          hi = v.hi;
        } else if (map.vector >= 2) {
          if (column >= 0 && column + 1 < map.wide) lo = *reinterpret_cast<const u32*>(from + column);
          if (column + 2 >= 0 && column + 3 < map.wide) hi = *reinterpret_cast<const u32*>(from + column + 2);
        } else {
          u32 v[4];
          LK_UNROLL for (int e = 0; e < 4; ++e) {
            v[e] = column + e >= 0 && column + e < map.wide ? from[column + e] : 0;
          }
          lo = v[0] | v[1] << 16;
          hi = v[2] | v[3] << 16;
        }
      }
      *reinterpret_cast<Words*>(tile + line * pitch + 4 * group) = {lo, hi};
    }
  }

  struct alignas(8) Words {
    u32 lo, hi;
  };
};

// A channel's tiles: so many columns of tiles and rows of them an image, so many tiles a block.
struct MmaTiles {
  int images, rows, eights;  // outputs of a tile: images, rows, columns in eights
  int across, down, count, a_block;
  Divider by_rows;

  LK_DEVICE int first() const { return static_cast<int>(block_x()) * a_block; }
  LK_DEVICE int last() const { return first() + a_block < count ? first() + a_block : count; }
};

// Where a tile's outputs begin.
struct MmaPlace {
  int n, i, j;
  LK_DEVICE MmaPlace(const MmaTiles& t, int index) {
    const int rest = index / t.across, band = rest / t.down;
    j = (index - rest * t.across) * kMmaColumns;
    i = (rest - band * t.down) * t.rows;
    n = band * t.images;
  }
};

struct MmaArgs {
  MmaMap in;
  const u16 *w, *bias;
  u16* out;
  int n, c, ho, wo;
  Strides out_s;
  Combine combine;
  bool turned, pairs;       // kernels turned by 180 degrees; two numbers of a row can be written at once
  i64 in_c[kMmaBranches];   // first channel of each slab read
  i64 out_c[kMmaBranches];  // first channel of each slab written
  i64 weight_start[kMmaBranches];
  MmaTiles tiles;
  MmaShape shape;
};

// T_u of one kernel: column n is output n of 8, row k input k of the 16 from 4 left of them.
template <int K>
LK_DEVICE void toeplitz(u32 (&t)[K > 0 ? K : 1][2], const u16* w, bool turned) {
  const int lane = tid() % kWarp, n = lane / 4, k0 = lane % 4 * 2;
  LK_UNROLL for (int u = 0; u < K; ++u) {
    LK_UNROLL for (int h = 0; h < 2; ++h) {
      u32 pair = 0;
      LK_UNROLL for (int e = 0; e < 2; ++e) {
        const int v = k0 + e + 8 * h - kMmaLeft - n + K / 2, tap = u * K + v;
        if (v >= 0 && v < K) pair |= static_cast<u32>(w[turned ? K * K - 1 - tap : tap]) << (16 * e);
      }
      t[u][h] = pair;
    }
  }
}

// Branches with kernels K0, K1, K2 (0: none) of one input, or back from the slabs of all of them to one map.
template <class T, int K0, int K1, int K2, bool kBack>
struct MmaConv {
  static constexpr int kThreads = 128, kWarps = kThreads / kWarp;
  static constexpr int kMost = K2 > K1 ? (K2 > K0 ? K2 : K0) : (K1 > K0 ? K1 : K0), kReach = kMost / 2;
  static constexpr int kCount = (K0 > 0) + (K1 > 0) + (K2 > 0);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  static constexpr int kBlocks = kCount > 2 ? 3 : 4;  // with 4, three kernels spill there
#else
  static constexpr int kBlocks = 4;
#endif
  static constexpr int kSlabs = kBack ? kCount : 1, kSums = kBack ? 1 : kCount, kEights = kMmaColumns / 8;
  using Args = MmaArgs;
  using Sums = float[kSums][kEights][4];

  // One kernel's products for the windows from `line` on, which lies kReach lines above the outputs.
  template <int K, int kUse>
  static LK_DEVICE void add(Sums& sums, const u32 (&t)[K > 0 ? K : 1][2], int i, int p, const u32 (&l)[2],
                            const u32 (&r)[2]) {
    if constexpr (K > 0) {
      const int u = i - (kReach - K / 2);
      if (u >= 0 && u < K) multiply<T>(sums[kBack ? 0 : kUse][p], l[0], l[1], r[0], r[1], t[u][0], t[u][1]);
    }
  }

  static LK_DEVICE void run(const Args& a) {
    u16* tile = reinterpret_cast<u16*>(shared());
    const int lane = tid() % kWarp, warp = tid() / kWarp, c = block_y();
    u32 t0[K0 > 0 ? K0 : 1][2], t1[K1 > 0 ? K1 : 1][2], t2[K2 > 0 ? K2 : 1][2];
    toeplitz<K0>(t0, a.w + a.weight_start[0] + static_cast<i64>(c) * K0 * K0, a.turned);
    if constexpr (K1 > 0) toeplitz<K1>(t1, a.w + a.weight_start[1] + static_cast<i64>(c) * K1 * K1, a.turned);
    if constexpr (K2 > 0) toeplitz<K2>(t2, a.w + a.weight_start[2] + static_cast<i64>(c) * K2 * K2, a.turned);

    const int pitch = a.shape.pitch, lines = a.shape.lines, slab = a.shape.numbers();
    const int products = a.tiles.images * a.tiles.rows;
    for (int index = a.tiles.first(); index < a.tiles.last(); ++index) {
      const MmaPlace o(a.tiles, index);
      if (index > a.tiles.first()) sync();  // the tile before has been read
      LK_UNROLL for (int s = 0; s < kSlabs; ++s)
          a.shape.load(a.in, tile + s * slab, a.in_c[s] + c, o.n, o.i - kReach, o.j - kMmaLeft, kThreads);
      sync();
      for (int m0 = warp * kMmaRows; m0 < products; m0 += kWarps * kMmaRows) {
        // Rows beyond the tile are computed from its first and not stored.
        const int mine = m0 + lane % 16 < products ? m0 + lane % 16 : 0, image = a.tiles.by_rows(mine);
        const u16* line = tile + (image * lines + mine - image * a.tiles.rows) * pitch;
        Sums sums;
        LK_UNROLL for (int s = 0; s < kSums; ++s) {
          LK_UNROLL for (int p = 0; p < kEights; ++p) { LK_UNROLL for (int e = 0; e < 4; ++e) sums[s][p][e] = 0; }
        }
        LK_UNROLL for (int s = 0; s < kSlabs; ++s) {
          LK_UNROLL for (int i = 0; i < kMost; ++i) {
            const u16* at = line + s * slab + i * pitch;
            u32 l[2], r[2];
            load_rows2(l[0], l[1], at);
            LK_UNROLL for (int p = 0; p < kEights; ++p) {
              if (p >= a.tiles.eights) break;
              load_rows2(r[0], r[1], at + 8 * (p + 1));
              if (!kBack || s == 0) add<K0, 0>(sums, t0, i, p, l, r);
              if (!kBack || s == 1) add<K1, 1>(sums, t1, i, p, l, r);
              if (!kBack || s == 2) add<K2, 2>(sums, t2, i, p, l, r);
              l[0] = r[0];
              l[1] = r[1];
            }
          }
        }
        store(a, sums, c, o, m0);
      }
    }
  }

  static LK_DEVICE void store(const MmaArgs& a, Sums& sums, int c, const MmaPlace& o, int m0) {
    const int lane = tid() % kWarp;
    const bool merged = kSums > 1 && a.combine == Combine::add;
    if (merged || (kSums > 1 && a.combine == Combine::cumulative)) {
      LK_UNROLL for (int s = 1; s < kSums; ++s) {
        LK_UNROLL for (int p = 0; p < kEights; ++p) {
          LK_UNROLL for (int e = 0; e < 4; ++e) sums[s][p][e] += sums[s - 1][p][e];
        }
      }
    }
    LK_UNROLL for (int half = 0; half < 2; ++half) {
      const int row = m0 + lane / 4 + 8 * half, image = a.tiles.by_rows(row);
      const int i = o.i + row - image * a.tiles.rows, n = o.n + image;
      if (image >= a.tiles.images || n >= a.n || i >= a.ho) continue;
      LK_UNROLL for (int s = 0; s < kSums; ++s) {
        if (merged && s + 1 < kSums) continue;
        const i64 channel = a.out_c[merged ? 0 : s] + c;
        const float bias = a.bias ? to_acc(T{a.bias[channel]}) : 0;
        u16* out = a.out + at(a.out_s, n, channel, i, 0);
        LK_UNROLL for (int p = 0; p < kEights; ++p) {
          const int j = o.j + 8 * p + lane % 4 * 2;
          if (p >= a.tiles.eights || j >= a.wo) break;
          const u16 one = from_acc<T>(sums[s][p][2 * half] + bias).bits;
          const u16 two = from_acc<T>(sums[s][p][2 * half + 1] + bias).bits;
          if (a.pairs) {
            *reinterpret_cast<u32*>(out + j) = one | static_cast<u32>(two) << 16;
          } else {
            out[j] = one;
            if (j + 1 < a.wo) out[j + 1] = two;
          }
        }
      }
    }
  }
};

}  // namespace lk::multi_dwconv2d::cuda
