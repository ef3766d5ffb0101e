// The forward as a matrix product of pixels and the filters of a group over its picked channels, 16 bit on tensor
// cores, wider types in registers. The left operand is read channel by channel, or gathered from pixels, scaled and
// activated in registers on its way into shared memory, while the step before it is multiplied. A block takes all
// groups of its pixels where blocks are enough: of channels last, each group reads some of the same bytes, which are
// then still in the first cache.
#pragma once
#include "condensed_conv2d/cuda_args.cuh"

namespace lk::condensed_conv2d::cuda {

template <class T>
struct ProductArgs {
  using E = typename Stored<T>::type;
  Problem p;
  const E *x, *w;
  const Acc<T>*scale, *shift;
  E* y;
  int together, splits;  // groups of a block, blocks of the same pixels
  int bits;              // of a filter's number in a tile
};

// A tile of so many pixels and columns, and its operands in shared memory. kBack: the right one is read by columns.
template <class T, int kN_, bool kBack>
struct ProductTile : Pixels<T> {
  using F = Pixels<T>;
  using E = typename F::E;
  using F::kCopy;
  using Chunk = typename F::Chunk;
  using A = Acc<T>;
  static constexpr bool kTensor = F::kHalf;
  static constexpr int kMembers = 256;  // threads of a block
  static constexpr int kM = 128, kN = kN_, kDepth = 4 * kCopy, kChunks = kM / kCopy;
  static constexpr int kUnits = kDepth * kChunks / kMembers, kWeights = kN * kDepth / kMembers;
  static constexpr int kPitch = !kTensor ? kN + kCopy : kBack ? kN : kDepth;  // [k][column], or [column][k]
  static constexpr int kLeft = kDepth * kM, kRight = (kTensor && !kBack ? kN : kDepth) * kPitch;
  static constexpr int kStage = kLeft + kRight;
  static constexpr int kWarps = kMembers / kWarp, kWarpM = 32, kWarpN = kN / 2;
  static_assert(kUnits == 2 && kWeights * kMembers == kN * kDepth && (kTensor || kN == 4 * kWarps));

  // Where 16 bytes of a channel lie in the left operand, and k of a column in the right: what a warp reads or writes at
  // once is in different banks.
  static LK_DEVICE int left_of(int k, int chunk) { return k * kM + (chunk ^ k % 8) * kCopy; }
  static LK_DEVICE int right_of(int n, int k) {
    if constexpr (!kTensor)
      return k * kPitch + n;
    else if constexpr (kBack)
      return k * kPitch + (n / kCopy ^ (kN < 64 ? k / 2 % 4 : k % 8)) * kCopy + n % kCopy;
    else
      return n * kPitch + (k / kCopy ^ n / 2 % 4) * kCopy + k % kCopy;
  }

  // The chunks that a thread puts into the left operand: the same of two channels (nchw), or two of one (nhwc); of a
  // shallow product, whose depth is half a step's, one.
  struct Mine {
    bool last, shallow;
    LK_DEVICE int row(int i) const {
      if (!last) return tid() / kChunks + i * (kMembers / kChunks);
      return tid() % (shallow ? kDepth / 2 : kDepth);
    }
    LK_DEVICE int chunk(int i) const {
      if (!last) return tid() % kChunks;
      return shallow ? tid() / (kDepth / 2) : tid() / kDepth + i * (kMembers / kDepth);
    }
    LK_DEVICE bool has(int i) const { return i == 0 || !shallow; }
  };

  // A step: so much of the depth of a group, for a tile of its columns.
  struct Cursor {
    int group, tile, k;
    LK_DEVICE void advance(int depth, int columns) {
      k += kDepth;
      if (k < depth) return;
      k = 0;
      tile += kN;
      if (tile < columns) return;
      tile = 0;
      ++group;
    }
  };

  // What a thread sums. On tensor cores: of 16 x 8 products, four numbers. Else four pixels and four filters.
  using Sums = A[kTensor ? kWarpM / 16 : 4][kTensor ? kWarpN / 8 : 4][kTensor ? 4 : 1];

  static LK_DEVICE void clear(Sums& sums) {
    LK_UNROLL for (auto& row : sums) {
      LK_UNROLL for (auto& column : row) { LK_UNROLL for (auto& sum : column) sum = 0; }
    }
  }

  static LK_DEVICE void multiply_stage(const E* stage, Sums& sums, bool shallow) {
    if constexpr (kTensor)
      multiply_tensor(stage, sums, shallow);
    else
      multiply_plain(stage, sums, shallow);
  }

  static LK_DEVICE void multiply_plain(const E* stage, Sums& sums, bool shallow) {
    const int lane = tid() % kWarp, warp = tid() / kWarp;
    LK_UNROLL for (int k = 0; k < kDepth; ++k) {
      if (k == kDepth / 2 && shallow) break;
      Chunk left[4 / kCopy], right[4 / kCopy];
      LK_UNROLL for (int i = 0; i < 4 / kCopy; ++i) {
        left[i] = *reinterpret_cast<const Chunk*>(stage + left_of(k, lane + i * kWarp));
        right[i] = *reinterpret_cast<const Chunk*>(stage + kLeft + right_of(4 * warp + i * kCopy, k));
      }
      LK_UNROLL for (int i = 0; i < 4; ++i) {
        LK_UNROLL for (int j = 0; j < 4; ++j) sums[i][j][0] +=
            left[i / kCopy].get(i % kCopy) * right[j / kCopy].get(j % kCopy);
      }
    }
  }

  static LK_DEVICE void multiply_tensor(const u16* stage, Sums& sums, bool shallow) {
    const int lane = tid() % kWarp, warp = tid() / kWarp;
    const int m0 = warp / 2 * (kWarpM / 8), n0 = warp % 2 * kWarpN;
    LK_UNROLL for (int k = 0; k < kDepth; k += 16) {
      if (k == kDepth / 2 && shallow) break;
      u32 left[kWarpM / 16][4], right[kWarpN / 16][4];
      const int l = k + lane % 8 + lane / 16 * 8;
      LK_UNROLL for (int i = 0; i < kWarpM / 16; ++i)
          load_columns4(left[i], stage + left_of(l, m0 + 2 * i + lane / 8 % 2));
      LK_UNROLL for (int j = 0; j < kWarpN / 16; ++j) {
        if constexpr (kBack)
          load_columns4(right[j],
                        stage + kLeft + right_of(n0 + 16 * j + lane / 16 * 8, k + lane % 8 + lane / 8 % 2 * 8));
        else
          load_rows4(right[j], stage + kLeft + right_of(n0 + 16 * j + lane % 8 + lane / 16 * 8, k + lane / 8 % 2 * 8));
      }
      LK_UNROLL for (int i = 0; i < kWarpM / 16; ++i) {
        LK_UNROLL for (int j = 0; j < kWarpN / 8; ++j) {
          const u32* pair = right[j / 2] + j % 2 * 2;
          multiply<T>(sums[i][j], left[i][0], left[i][1], left[i][2], left[i][3], pair[0], pair[1]);
        }
      }
    }
  }
};

template <class T, int kN_>
struct ProductFwd : ProductTile<T, kN_, false> {
  static constexpr int kThreads = 256, kBlocks = sizeof(T) == 8 || kN_ > 32 ? 2 : 3;
  using F = Pixels<T>;
  using Tile = ProductTile<T, kN_, false>;
  using Tile::kChunks, Tile::kCopy, Tile::kDepth, Tile::kLeft, Tile::kM, Tile::kN, Tile::kStage, Tile::kTensor,
      Tile::kUnits, Tile::kWarpM, Tile::kWarpN, Tile::kWeights, Tile::left_of, Tile::right_of;
  using typename Tile::A, typename Tile::Chunk, typename Tile::Cursor, typename Tile::E, typename Tile::Mine,
      typename Tile::Sums;
  using Args = ProductArgs<T>;
  static constexpr int kOut = kTensor ? kN * (kM + 8) : 0;

  static constexpr int shared_bytes() {
    return (2 * kStage + kOut) * static_cast<int>(sizeof(E)) + 2 * kM * static_cast<int>(sizeof(i64));
  }

  static LK_DEVICE bool shallow(const Problem& p) { return p.picked <= kDepth / 2; }

  // What a thread reads in a step: chunks of pixels and some weights. Channels are looked up a step before.
  struct Loader {
    Cursor at;
    int last;  // the group after the block's
    int channel[kUnits];
    Chunk raw[kUnits];
    A scale[kUnits], shift[kUnits];
    E weight[kWeights];

    LK_DEVICE void look_up(const Args& a) {
      const Problem& p = a.p;
      const Mine mine{p.last, shallow(p)};
      LK_UNROLL for (int i = 0; i < kUnits; ++i) {
        if (!mine.has(i)) continue;
        const int k = at.k + mine.row(i);
        channel[i] = at.group < last && k < p.picked ? p.channel(at.group * p.picked + k) : -1;
      }
    }

    LK_DEVICE void load(const Args& a, const i64* places) {
      const Problem& p = a.p;
      const Mine mine{p.last, shallow(p)};
      LK_UNROLL for (int i = 0; i < kUnits; ++i) {
        if (!mine.has(i)) continue;
        const int q = channel[i], k = at.k + mine.row(i), entry = at.group * p.picked + k;
        raw[i] = F::load(a.x + (q >= 0 ? q * p.x.channel : 0), places + mine.chunk(i) * kCopy, q >= 0, p.x.vector);
        scale[i] = k < p.picked ? a.scale[entry] : A(0);
        shift[i] = k < p.picked ? a.shift[entry] : A(0);
      }
      const int k = at.k + tid() % kDepth, n = at.tile + tid() / kDepth, step = kThreads / kDepth;
      const u32 entry = (static_cast<u32>(n) * p.groups + at.group) * p.picked + k;
      LK_UNROLL for (int i = 0; i < kWeights; ++i) {
        const bool is = k < p.picked && n + i * step < p.each;
        weight[i] = is ? a.w[entry + static_cast<u32>(i) * step * p.groups * p.picked] : E(0);
      }
      at.advance(p.picked, p.each);
      look_up(a);
    }

    LK_DEVICE void store(const Problem& p, E* stage) const {
      LK_UNROLL for (int i = 0; i < kWeights; ++i) {
        const int item = tid() + i * kThreads;
        stage[kLeft + right_of(item / kDepth, item % kDepth)] = weight[i];
      }
      const Mine mine{p.last, shallow(p)};
      LK_UNROLL for (int i = 0; i < kUnits; ++i) {
        if (!mine.has(i)) continue;
        Chunk made{};
        LK_UNROLL for (int e = 0; e < kCopy; ++e) made.put(e, activate(raw[i].get(e) * scale[i] + shift[i], p.hard));
        *reinterpret_cast<Chunk*>(stage + left_of(mine.row(i), mine.chunk(i))) = made;
      }
    }
  };

  static LK_DEVICE void run(const Args& a) {
    const Problem& p = a.p;
    E* stages = reinterpret_cast<E*>(shared());
    E* out = stages + 2 * kStage;
    i64* from = reinterpret_cast<i64*>(out + kOut);  // each pixel's place in x, then in y
    const Share mine = share_of(p, a.splits, a.together, kM, kThreads, from);
    Loader loader;
    loader.at = {mine.first, 0, 0};
    loader.last = mine.last;
    loader.look_up(a);
    sync();
    Cursor now = loader.at;
    loader.load(a, from);
    loader.store(p, stages);
    sync();
    Sums sums;
    Tile::clear(sums);
    for (int stage = 0; now.group < loader.last; stage ^= 1) {
      const bool more = loader.at.group < loader.last;
      if (more) loader.load(a, from);
      Tile::multiply_stage(stages + stage * kStage, sums, shallow(p));
      if (now.k + kDepth >= p.picked) {
        if constexpr (kTensor)
          finish(a, sums, out, from + kM, now);
        else
          finish_plain(a, sums, from + kM, now);
        Tile::clear(sums);
      }
      now.advance(p.picked, p.each);
      if (more) loader.store(p, stages + (stage ^ 1) * kStage);
      sync();
    }
  }

  static LK_DEVICE E* channel_of(const Args& a, const Cursor& now, int n) {
    return a.y + (static_cast<i64>(now.tile + n) * a.p.groups + now.group) * a.p.y.channel;
  }

  static LK_DEVICE void finish_plain(const Args& a, const Sums& sums, const i64* places, const Cursor& now) {
    const int lane = tid() % kWarp, warp = tid() / kWarp;
    LK_UNROLL for (int j = 0; j < 4; ++j) {
      if (now.tile + 4 * warp + j >= a.p.each) continue;
      LK_UNROLL for (int i = 0; i < 4 / kCopy; ++i) {
        Chunk made{};
        LK_UNROLL for (int e = 0; e < kCopy; ++e) made.put(e, sums[i * kCopy + e][j][0]);
        F::store(made, channel_of(a, now, 4 * warp + j), places + (lane + i * kWarp) * kCopy, a.p.y.vector);
      }
    }
  }

  // Through shared memory, so that what lies side by side is written together: pixels (nchw) or filters (nhwc).
  static LK_DEVICE void finish(const Args& a, const Sums& sums, u16* out, const i64* places, const Cursor& now) {
    const Problem& p = a.p;
    const int lane = tid() % kWarp, warp = tid() / kWarp;
    const int step_m = p.last ? kN + 2 : 1, step_n = p.last ? 1 : kM + 8;
    u16* mine = out + (warp / 2 * kWarpM + lane / 4) * step_m + (warp % 2 * kWarpN + lane % 4 * 2) * step_n;
    LK_UNROLL for (int i = 0; i < kWarpM / 16; ++i) {
      LK_UNROLL for (int j = 0; j < kWarpN / 8; ++j) {
        LK_UNROLL for (int q = 0; q < 4; ++q) {
          mine[(i * 16 + q / 2 * 8) * step_m + (j * 8 + q % 2) * step_n] = from_acc<T>(sums[i][j][q]).bits;
        }
      }
    }
    sync();
    const int real = p.each - now.tile;
    if (p.last) {
      LK_ROLLED for (int item = tid(); item < kM << a.bits; item += kThreads) {
        const int n = item & ((1 << a.bits) - 1), m = item >> a.bits;
        if (n < real && places[m] >= 0) channel_of(a, now, n)[places[m]] = out[m * step_m + n];
      }
      return;
    }
    LK_ROLLED for (int item = tid(); item < kN * kChunks; item += kThreads) {
      const int n = item / kChunks, chunk = item % kChunks * kCopy;
      if (n < real)
        F::store(*reinterpret_cast<const Chunk*>(out + n * step_n + chunk), channel_of(a, now, n), places + chunk,
                 p.y.vector);
    }
  }
};

}  // namespace lk::condensed_conv2d::cuda
