// Where the filters of a group share their taps: one matrix product of pixels and filters over taps and channels, 16
// bit on tensor cores, wider types in registers. A row of the left operand is a pixel's channels at one tap, wherever
// that tap lies, so nine taps drawn from a large window cost what those of a 3 x 3 cost. The input's gradient is the
// same product with mirrored taps and the transposed weight, one launch's phases for the pixels that a stride tells
// apart. A row outside the image is zeros: it meets every weight, and an Inf among the weights shows, as it does in
// PyTorch.
#pragma once
#include "rsdc2d/cuda_args.cuh"

namespace lk::rsdc2d::cuda {

constexpr int kMostTaps = 128;        // of a set
constexpr int kTogether = 4;          // blocks of channels, 128 bytes, whose taps are taken together
constexpr int kSize = 1 << 29;        // sizes and reach stay below it,
constexpr int kNowhere = -2 * kSize;  // so that this is outside whatever is added

template <class T>
struct Form {
  using E = typename Stored<T>::type;
  static constexpr bool kTensor = sizeof(E) == 2;
  static constexpr int kCopy = 16 / sizeof(E);                 // numbers copied at once
  static constexpr int kChunks = 4, kDepth = kChunks * kCopy;  // of a row: channels of a step, of one tap or two
  static constexpr int kBlock = 2 * kCopy;                     // channels that a tap changes after
  struct alignas(16) Chunk {
    E v[kCopy];
  };
  // Where 16 bytes of a row lie: any 8 rows' chunks of one number are in different banks.
  static LK_DEVICE int chunk_of(int row, int chunk) { return row * kDepth + (chunk ^ (row / 2 % kChunks)) * kCopy; }
};

// A tap of a phase: the offset to its pixel, and its place in the weight.
struct LiveTap {
  i64 offset;
  int dy, dx, t;
};

template <class E>
struct ProductArgs {
  Problem p;
  const E *in, *w, *bias;  // w: [group, column, tap, channel]
  E* out;
  Strides in_s, out_s;
  int in_h, in_w, out_h, out_w;
  int depth, columns, tiles;             // of a group: channels summed over, channels computed, tiles of those
  int step_h, step_w, every_h, every_w;  // pixels between two outputs of a phase: in the input, in the output
  bool back, vector;                     // vector: 16 bytes of a pixel can be written at once

  LK_DEVICE LiveTap tap(i64 cell, int t, int up, int left) const {
    const Shift s(p, cell);
    const int y = back ? up - s.dy : s.dy, x = back ? left - s.dx : s.dx;
    const bool live = s.live && y % every_h == 0 && x % every_w == 0;
    const int dy = y / every_h, dx = x / every_w;
    return {dy * in_s.h + dx * in_s.w, dy, dx, live ? t : -1};
  }
};

template <class T, int kM_, int kN_, int kWarpM, int kWarpN, int kStages, int kResident>
struct ProductConv : Form<T> {
  using F = Form<T>;
  using E = typename F::E;
  using F::chunk_of, F::kBlock, F::kChunks, F::kCopy, F::kDepth, F::kTensor;
  static constexpr int kThreads = kM_ / kWarpM * (kN_ / kWarpN) * kWarp, kBlocks = kResident;
  static constexpr int kM = kM_, kN = kN_, kWarpsN = kN / kWarpN;
  static constexpr int kStage = (kM + kN) * kDepth, kPitch = kN + 8;
  static constexpr int kRoom = kTensor && kM * kPitch > kStages* kStage ? kM * kPitch : kStages * kStage;
  static constexpr int kPass = kThreads / kChunks;  // rows copied at once
  static constexpr int kRows = kM / kPass, kColumns = (kN + kPass - 1) / kPass;
  using Args = ProductArgs<E>;

  static_assert(kPass % 8 == 0, "rows of one thread lie in the same banks");

  static int shared_bytes(const Args& a) {
    return kRoom * static_cast<int>(sizeof(E)) + kM * 8 + a.p.taps * static_cast<int>(sizeof(LiveTap)) + 16;
  }

  // What a thread copies: one chunk of some rows of both operands, in each step of the next channels or tap.
  struct Loader {
    const E *rows[kRows], *columns[kColumns];
    int top[kRows], left[kRows];
    u32 real;  // columns that there are
    int chunk, first, tap, first_block, block;

    LK_DEVICE void load(const Args& a, E* stage, const LiveTap* table, int count) {
      const int blocks = a.depth / kBlock;
      const bool more = first_block < blocks;
      const LiveTap one = more ? table[tap] : LiveTap{0, kNowhere, 0, 0};
      const int channel = (first_block + block) * kBlock + chunk % 2 * kCopy;
      const i64 pixel = one.offset + channel, weight = static_cast<i64>(one.t) * a.depth + channel;
      E* to = stage + chunk_of(first, chunk);
      // Nothing is read from the address of what is not there.
      LK_UNROLL for (int i = 0; i < kRows; ++i) {
        const bool is = static_cast<u32>(top[i] + one.dy) < static_cast<u32>(a.in_h) &&
                        static_cast<u32>(left[i] + one.dx) < static_cast<u32>(a.in_w);
        copy_later<true>(to + i * kPass * kDepth, rows[i] + pixel, is);
      }
      LK_UNROLL for (int i = 0; i < kColumns; ++i) {
        if (kN % kPass && first + i * kPass >= kN) continue;
        copy_later<false>(to + (kM + i * kPass) * kDepth, columns[i] + weight, more && (real >> i & 1));
      }
      next(blocks, count, 2);
    }

    // Goes on by so many blocks of channels: all taps of kTogether blocks come before those of the next, so that what
    // taps share of their pixels is still in the first cache.
    LK_DEVICE void next(int blocks, int count, int by) {
      block += by;
      LK_UNROLL for (int twice = 0; twice < 2; ++twice) {
        const int together = blocks - first_block < kTogether ? blocks - first_block : kTogether;
        if (block < together || together <= 0) break;
        block -= together;
        if (++tap == count) {
          tap = 0;
          first_block += kTogether;
        }
      }
    }
  };

  // What a thread sums. On tensor cores: of 16 x 8 products, four numbers. Else every fourth row of the warp's and
  // every eighth column.
  using Sums = Acc<T>[kWarpM / (kTensor ? 16 : 4)][kWarpN / 8][kTensor ? 4 : 1];

  static LK_DEVICE void multiply_plain(const E* stage, Sums& sums) {
    const int lane = tid() % kWarp, warp = tid() / kWarp;
    const int m0 = warp / kWarpsN * kWarpM + lane / 8, n0 = kM + warp % kWarpsN * kWarpN + lane % 8;
    using Chunk = typename F::Chunk;
    LK_UNROLL for (int k = 0; k < kChunks; ++k) {
      Chunk left[kWarpM / 4];
      LK_UNROLL for (int i = 0; i < kWarpM / 4; ++i) left[i] =
          *reinterpret_cast<const Chunk*>(stage + chunk_of(m0 + 4 * i, k));
      LK_UNROLL for (int j = 0; j < kWarpN / 8; ++j) {
        const Chunk right = *reinterpret_cast<const Chunk*>(stage + chunk_of(n0 + 8 * j, k));
        LK_UNROLL for (int e = 0; e < kCopy; ++e) {
          LK_UNROLL for (int i = 0; i < kWarpM / 4; ++i) sums[i][j][0] += to_acc(left[i].v[e]) * to_acc(right.v[e]);
        }
      }
    }
  }

  static LK_DEVICE void multiply_stage(const E* stage, Sums& sums) {
    if constexpr (kTensor)
      multiply_tensor(stage, sums);
    else
      multiply_plain(stage, sums);
  }

  static LK_DEVICE void multiply_tensor(const u16* stage, Sums& sums) {
    const int lane = tid() % kWarp, warp = tid() / kWarp;
    const int m0 = warp / kWarpsN * kWarpM, n0 = kM + warp % kWarpsN * kWarpN;
    LK_UNROLL for (int k = 0; k < kDepth / 16; ++k) {
      u32 left[kWarpM / 16][4], right[kWarpN / 16][4];
      const u16* l = stage + chunk_of(m0 + lane % 16, 2 * k + lane / 16);
      const u16* r = stage + chunk_of(n0 + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2);
      LK_UNROLL for (int i = 0; i < kWarpM / 16; ++i) load_rows4(left[i], l + i * 16 * kDepth);
      LK_UNROLL for (int j = 0; j < kWarpN / 16; ++j) load_rows4(right[j], r + j * 16 * kDepth);
      LK_UNROLL for (int i = 0; i < kWarpM / 16; ++i) {
        LK_UNROLL for (int j = 0; j < kWarpN / 8; ++j) {
          const u32* pair = right[j / 2] + j % 2 * 2;
          multiply<T>(sums[i][j], left[i][0], left[i][1], left[i][2], left[i][3], pair[0], pair[1]);
        }
      }
    }
  }

  static LK_DEVICE void run(const Args& a) {
    const Problem& p = a.p;
    E* stages = reinterpret_cast<E*>(shared());
    i64* places = reinterpret_cast<i64*>(stages + kRoom);  // of each row's first output; -1: there is none
    LiveTap* table = reinterpret_cast<LiveTap*>(places + kM);
    int* live = reinterpret_cast<int*>(table + p.taps);
    i64 first = block_x();
    const int tile = take(first, a.tiles) * kN, group = take(first, p.groups);
    const int up = block_z() / a.every_w, left = block_z() % a.every_w;
    const int high = (a.out_h - up + a.every_h - 1) / a.every_h, wide = (a.out_w - left + a.every_w - 1) / a.every_w;
    const i64 pixels = up < a.out_h && left < a.out_w ? static_cast<i64>(p.n) * high * wide : 0;
    first *= kM;
    if (first >= pixels) return;

    // The taps of this phase, in their order.
    LiveTap* all = reinterpret_cast<LiveTap*>(stages);
    const i64* cells = p.set_of(group * p.each);
    for (int t = tid(); t < p.taps; t += kThreads) all[t] = a.tap(cells[t], t, up, left);
    Loader loader;
    loader.chunk = tid() % kChunks;
    loader.first = tid() / kChunks;
    loader.tap = loader.first_block = loader.block = 0;
    loader.real = 0;
    LK_UNROLL for (int i = 0; i < kRows; ++i) {
      const int row = loader.first + i * kPass;
      i64 n = first + row;
      const bool real = n < pixels;
      if (!real) n = 0;
      const int q = take(n, wide), r = take(n, high);
      loader.top[i] = real ? r * a.step_h : kNowhere;
      loader.left[i] = q * a.step_w;
      loader.rows[i] = a.in + n * a.in_s.n + static_cast<i64>(r) * a.step_h * a.in_s.h + loader.left[i] * a.in_s.w +
                       static_cast<i64>(group) * a.depth;
      if (loader.chunk == 0)
        places[row] = real ? n * a.out_s.n + (static_cast<i64>(r) * a.every_h + up) * a.out_s.h +
                                 (static_cast<i64>(q) * a.every_w + left) * a.out_s.w +
                                 static_cast<i64>(group) * a.columns * a.out_s.c
                           : -1;
    }
    LK_UNROLL for (int i = 0; i < kColumns; ++i) {
      const int column = tile + loader.first + i * kPass;
      loader.columns[i] = a.w + (static_cast<i64>(group) * a.columns + column) * p.taps * a.depth;
      loader.real |= static_cast<u32>(column < a.columns) << i;
    }
    sync();
    for (int t = tid(); t < p.taps; t += kThreads) {
      int before = 0;
      for (int s = 0; s < t; ++s) before += all[s].t >= 0;
      if (all[t].t >= 0) table[before] = all[t];
      if (t + 1 == p.taps) *live = before + (all[t].t >= 0);
    }
    sync();

    Sums sums;
    LK_UNROLL for (auto& row : sums) {
      LK_UNROLL for (auto& column : row) { LK_UNROLL for (auto& sum : column) sum = 0; }
    }
    const int count = *live, steps = (count * (a.depth / kBlock) + 1) / 2;
    loader.next(a.depth / kBlock, count, loader.chunk / 2);
    for (int s = 0; s < kStages - 1; ++s) {
      if (s < steps) loader.load(a, stages + s * kStage, table, count);
      close_copies();
    }
    for (int step = 0; step < steps; ++step) {
      await_copies<kStages - 2>();
      sync();  // the step's numbers are there for all, and the stage before it has been read
      if (step + kStages - 1 < steps) loader.load(a, stages + (step + kStages - 1) % kStages * kStage, table, count);
      close_copies();
      multiply_stage(stages + step % kStages * kStage, sums);
    }
    await_copies<0>();
    sync();
    const i64 channel = static_cast<i64>(group) * a.columns;
    if constexpr (kTensor)
      store(a, sums, stages, places, tile, channel);
    else
      store_plain(a, sums, places, tile, channel);
  }

  static LK_DEVICE void store_plain(const Args& a, const Sums& sums, const i64* places, int tile, i64 channel) {
    const int lane = tid() % kWarp, warp = tid() / kWarp;
    LK_UNROLL for (int j = 0; j < kWarpN / 8; ++j) {
      const int column = tile + warp % kWarpsN * kWarpN + lane % 8 + 8 * j;
      if (column >= a.columns) continue;
      const Acc<T> bias = a.bias ? to_acc(a.bias[channel + column]) : Acc<T>(0);
      LK_UNROLL for (int i = 0; i < kWarpM / 4; ++i) {
        const i64 to = places[warp / kWarpsN * kWarpM + lane / 8 + 4 * i];
        if (to >= 0) a.out[to + column * a.out_s.c] = from_acc<T>(a.bias ? sums[i][j][0] + bias : sums[i][j][0]);
      }
    }
  }

  // Through shared memory, so that a pixel's outputs are written side by side.
  static LK_DEVICE void store(const Args& a, const Sums& sums, u16* rows, const i64* places, int tile, i64 channel) {
    const int lane = tid() % kWarp, warp = tid() / kWarp;
    LK_UNROLL for (int j = 0; j < kWarpN / 8; ++j) {
      const int column = warp % kWarpsN * kWarpN + j * 8 + lane % 4 * 2;
      const bool biased = a.bias && tile + column < a.columns;
      const u16* bias = a.bias + (biased ? channel + tile + column : 0);
      const float one = biased ? to_acc(T{bias[0]}) : 0, two = biased ? to_acc(T{bias[1]}) : 0;
      LK_UNROLL for (int i = 0; i < kWarpM / 16; ++i) {
        LK_UNROLL for (int half = 0; half < 2; ++half) {
          const int row = warp / kWarpsN * kWarpM + i * 16 + half * 8 + lane / 4;
          const u32 lo = from_acc<T>(sums[i][j][2 * half] + one).bits;
          const u32 hi = from_acc<T>(sums[i][j][2 * half + 1] + two).bits;
          *reinterpret_cast<u32*>(rows + row * kPitch + column) = lo | hi << 16;
        }
      }
    }
    sync();
    if (a.vector) {
      for (int item = tid(); item < kM * (kN / 8); item += kThreads) {
        const int row = item / (kN / 8), column = item % (kN / 8) * 8;
        if (places[row] >= 0 && tile + column < a.columns)
          *reinterpret_cast<Quad*>(a.out + places[row] + tile + column) =
              *reinterpret_cast<const Quad*>(rows + row * kPitch + column);
      }
      return;
    }
    for (int item = tid(); item < kM * kN; item += kThreads) {
      const int row = item % kM, column = item / kM;
      if (places[row] >= 0 && tile + column < a.columns)
        a.out[places[row] + (tile + column) * a.out_s.c] = rows[row * kPitch + column];
    }
  }
};

// The weight as the products read it, [group, column, tap, channel]; `back`: a column is a channel of x.
template <class E>
struct Pack {
  static constexpr int kThreads = 256, kBlocks = 4;
  struct Args {
    const E* w;
    E* out;
    i64 count;
    int taps, part, each;
    bool back;
  };
  static LK_DEVICE void run(const Args& a) {
    const i64 index = block_x() * kThreads + tid();
    if (index >= a.count) return;
    i64 row = index;
    const int k = take(row, a.back ? a.each : a.part), t = take(row, a.taps);
    if (a.back) {
      const int c = take(row, a.part);
      a.out[index] = a.w[((row * a.each + k) * a.part + c) * a.taps + t];
    } else {
      a.out[index] = a.w[(row * a.part + k) * a.taps + t];
    }
  }
};

}  // namespace lk::rsdc2d::cuda
