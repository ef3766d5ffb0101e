// The weight gradient: filters of a group times its picked channels, summed over pixels, in two stages of fixed order.
#pragma once
#include "condensed_conv2d/cuda_args.cuh"

namespace lk::condensed_conv2d::cuda {

template <class T>
struct GradArgs {
  using E = typename Stored<T>::type;
  Problem p;
  const E *g, *x;
  const Acc<T>*scale, *shift;
  Acc<T>* part;         // [part][filter][picked]
  i64 weights, a_part;  // a_part: pixels of a part
  int rows, columns;    // tiles of a group's filters and picked channels
};

template <class T>
struct ProductGrad : Pixels<T> {
  static constexpr int kThreads = 256, kBlocks = sizeof(T) > 2 ? 2 : 3;
  using F = Pixels<T>;
  using E = typename F::E;
  using F::kCopy;
  using Chunk = typename F::Chunk;
  using A = Acc<T>;
  using Args = GradArgs<T>;
  static constexpr bool kTensor = F::kHalf;
  static constexpr int kTile = 32, kChunks = 8, kPixels = kChunks * kCopy;  // rows of both operands; of a row
  static constexpr int kSide = kTile * kPixels, kStage = 2 * kSide;
  static_assert(kTile * kChunks == kThreads);

  static constexpr int shared_bytes() { return 2 * kStage * static_cast<int>(sizeof(E)); }

  static LK_DEVICE int place(int row, int chunk) { return row * kPixels + (chunk ^ row % 8) * kCopy; }

  // What a thread reads: the same chunk of a filter's gradient and of a channel.
  struct Loader {
    const E *gradient, *channel;
    A scale, shift;
    bool filter, column, picked;  // whether they are there
    int row, chunk;
    Chunk left, right;
    i64 pixel;

    LK_DEVICE void begin(const Args& a, int group, int j0, int k0) {
      const Problem& p = a.p;
      row = p.last ? tid() % kTile : tid() / kChunks;
      chunk = p.last ? tid() / kTile : tid() % kChunks;
      const int j = j0 + row, k = k0 + row, entry = group * p.picked + k;
      filter = j < p.each;
      column = k < p.picked;
      const int q = column ? p.channel(entry) : -1;
      picked = q >= 0;
      gradient = a.g + (filter ? (static_cast<i64>(j) * p.groups + group) * p.y.channel : 0);
      channel = a.x + (picked ? q * p.x.channel : 0);
      scale = column ? a.scale[entry] : A(0);
      shift = column ? a.shift[entry] : A(0);
    }

    LK_DEVICE void load(const Args& a, i64 first, i64 last) {
      const Problem& p = a.p;
      pixel = first + chunk * kCopy;
      i64 to[kCopy], from[kCopy];
      i64 n = pixel;
      int inside = take(n, p.area);
      LK_UNROLL for (int e = 0; e < kCopy; ++e) {
        const bool is = pixel + e < last;
        to[e] = is ? n * p.y.image + inside * p.y.pixel : -1;
        from[e] = is ? n * p.x.image + inside * p.x.pixel : -1;
        if (++inside == p.area) {
          inside = 0;
          ++n;
        }
      }
      left = F::load(gradient, to, filter, p.y.vector);
      right = F::load(channel, from, picked, p.x.vector);
    }

    // What is no pixel is nothing, whatever a shift makes of it.
    LK_DEVICE void store(const Problem& p, E* stage, i64 last) const {
      Chunk made{};
      LK_UNROLL for (int e = 0; e < kCopy; ++e) {
        const A v = activate(right.get(e) * scale + shift, p.hard);
        made.put(e, pixel + e < last ? v : A(0));
      }
      *reinterpret_cast<Chunk*>(stage + place(row, chunk)) = left;
      *reinterpret_cast<Chunk*>(stage + kSide + place(row, chunk)) = made;
    }
  };

  // On tensor cores 16 filters by 8 channels of a warp, else 2 by 2 of a thread.
  using Sums = A[4];

  static LK_DEVICE void multiply_stage(const E* stage, Sums& sums) {
    const int lane = tid() % kWarp, warp = tid() / kWarp;
    if constexpr (kTensor) {
      LK_UNROLL for (int k = 0; k < kChunks; k += 2) {
        u32 left[4], right[2];
        load_rows4(left, stage + place(warp / 4 * 16 + lane % 16, k + lane / 16));
        load_rows2(right[0], right[1], stage + kSide + place(warp % 4 * 8 + lane % 8, k + lane / 8 % 2));
        multiply<T>(sums, left[0], left[1], left[2], left[3], right[0], right[1]);
      }
    } else {
      LK_UNROLL for (int k = 0; k < kChunks; ++k) {
        Chunk left[2], right[2];
        LK_UNROLL for (int i = 0; i < 2; ++i) {
          left[i] = *reinterpret_cast<const Chunk*>(stage + place(tid() / 16 + 16 * i, k));
          right[i] = *reinterpret_cast<const Chunk*>(stage + kSide + place(tid() % 16 + 16 * i, k));
        }
        LK_UNROLL for (int e = 0; e < kCopy; ++e) {
          LK_UNROLL for (int i = 0; i < 4; ++i) sums[i] += left[i / 2].get(e) * right[i % 2].get(e);
        }
      }
    }
  }

  static LK_DEVICE void run(const Args& a) {
    const Problem& p = a.p;
    E* stages = reinterpret_cast<E*>(shared());
    i64 rest = block_x();
    const int k0 = take(rest, a.columns) * kTile, j0 = take(rest, a.rows) * kTile, group = static_cast<int>(rest);
    i64 first = block_y() * a.a_part;
    const i64 last = first + a.a_part < p.pixels ? first + a.a_part : p.pixels;
    Loader loader;
    loader.begin(a, group, j0, k0);
    Sums sums = {0, 0, 0, 0};
    loader.load(a, first, last);
    loader.store(p, stages, last);
    sync();
    for (int stage = 0; first < last; first += kPixels, stage ^= 1) {
      const bool more = first + kPixels < last;
      if (more) loader.load(a, first + kPixels, last);
      multiply_stage(stages + stage * kStage, sums);
      if (more) loader.store(p, stages + (stage ^ 1) * kStage, last);
      sync();
    }
    const int lane = tid() % kWarp, warp = tid() / kWarp;
    LK_UNROLL for (int i = 0; i < 4; ++i) {
      const int j = j0 + (kTensor ? warp / 4 * 16 + lane / 4 + i / 2 * 8 : tid() / 16 + i / 2 * 16);
      const int k = k0 + (kTensor ? warp % 4 * 8 + lane % 4 * 2 + i % 2 : tid() % 16 + i % 2 * 16);
      if (j < p.each && k < p.picked)
        a.part[block_y() * a.weights + (static_cast<i64>(j) * p.groups + group) * p.picked + k] = sums[i];
    }
  }
};

template <class T>
struct SumArgs {
  const Acc<T>* part;
  T *out, *second;  // columns from `split` on go there
  i64 columns, split, parts;
};

// The parts in an order of its own: a block's warps take every kWarps-th, and the first adds what they have.
template <class T>
struct SumParts {
  static constexpr int kThreads = 512, kBlocks = 2;
  using A = Acc<T>;
  using Args = SumArgs<T>;
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int shared_bytes() { return kThreads * static_cast<int>(sizeof(A)); }

  static LK_DEVICE void run(const Args& a) {
    A* all = reinterpret_cast<A*>(shared());
    const int lane = tid() % kWarp, warp = tid() / kWarp;
    const i64 column = block_x() * kWarp + lane;
    A sum = 0;
    if (column < a.columns) {
      LK_UNROLL_4 for (i64 q = warp; q < a.parts; q += kWarps) sum += a.part[q * a.columns + column];
    }
    all[tid()] = sum;
    sync();
    if (warp || column >= a.columns) return;
    for (int q = 1; q < kWarps; ++q) sum += all[q * kWarp + lane];
    (column < a.split ? a.out[column] : a.second[column - a.split]) = from_acc<T>(sum);
  }
};

}  // namespace lk::condensed_conv2d::cuda
