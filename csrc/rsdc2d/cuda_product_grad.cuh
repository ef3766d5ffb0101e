// The weight gradient where filters share their taps: filters times (tap, channel), summed over pixels. Both operands
// lie with pixels as rows; a row of the right one is a pixel at one tap or several. Sums stay in registers over all
// pixels of a part, and a part lies as [filter, tap, channel].
#pragma once
#include "rsdc2d/cuda_product.cuh"

namespace lk::rsdc2d::cuda {

constexpr int kStepPixels = 32;

template <class T>
struct ProductGradArgs {
  Problem p;
  const typename Form<T>::E *x, *g;
  Acc<T>* work;
  i64 weights, pixels, a_part;  // pixels of a part
  int filter_tiles, tiles;      // of a group
  int images, rows, columns;    // of kStepPixels pixels
};

template <class T, int kM_, int kN_, int kWarpM, int kWarpN, int kStages, int kResident>
struct ProductGrad : Form<T> {
  using F = Form<T>;
  using E = typename F::E;
  using F::kCopy, F::kTensor;
  static constexpr int kThreads = kM_ / kWarpM * (kN_ / kWarpN) * kWarp, kBlocks = kResident;
  static constexpr int kM = kM_, kN = kN_, kWarpsN = kN / kWarpN;
  static constexpr int kPixels = kStepPixels, kStage = kPixels * (kM + kN);
  static constexpr int kLanes = kThreads / kPixels;  // threads that copy a pixel
  static constexpr int kRows = kM / kCopy / kLanes, kColumns = kN / kCopy / kLanes;
  using Args = ProductGradArgs<T>;
  struct alignas(2 * sizeof(Acc<T>)) Two {
    Acc<T> v[2];
  };
  static_assert(kM % 64 == 0 && kN % 64 == 0 && kRows * kLanes * kCopy == kM && kColumns * kLanes * kCopy == kN);

  static constexpr int shared_bytes() { return kStages * kStage * static_cast<int>(sizeof(E)); }

  // Where 16 bytes of a pixel lie: one chunk of any 8 pixels is in different banks.
  template <int kWide>
  static LK_DEVICE int place(int pixel, int chunk) {
    return pixel * kWide + (chunk ^ pixel % 8) * kCopy;
  }

  // What a thread copies: some chunks of one pixel of every 32, of both operands.
  struct Loader {
    const E* columns[kColumns];
    int dy[kColumns], dx[kColumns];
    u32 filters;  // chunks of filters that there are
    int lane, pixel, n, i, j;
    int left;    // pixels of the part from this one on
    i64 filter;  // in g

    LK_DEVICE void load(const Args& a, E* stage) {
      const Problem& p = a.p;
      const bool is = left > 0;
      const i64 from = is ? n * p.y.n + i * p.y.h + j * p.y.w : 0;
      LK_UNROLL for (int q = 0; q < kRows; ++q)
          copy_later<false>(stage + place<kM>(pixel, lane + q * kLanes), a.g + filter + from + q * kLanes * kCopy,
                            is && (filters >> q & 1));
      const int top = is ? i * p.stride_h : kNowhere, side = j * p.stride_w;
      const i64 at = n * p.x.n + static_cast<i64>(i) * p.stride_h * p.x.h + side * p.x.w;
      LK_UNROLL for (int q = 0; q < kColumns; ++q) {
        const bool in = static_cast<u32>(top + dy[q]) < static_cast<u32>(p.h) &&
                        static_cast<u32>(side + dx[q]) < static_cast<u32>(p.w);
        copy_later<true>(stage + kPixels * kM + place<kN>(pixel, lane + q * kLanes), columns[q] + at, in);
      }
      left -= kPixels;
      j += a.columns;
      i += a.rows;
      n += a.images;
      if (j >= p.wo) {
        j -= p.wo;
        ++i;
      }
      if (i >= p.ho) {
        i -= p.ho;
        ++n;
      }
    }
  };

  // What a thread sums. On tensor cores: of 16 x 8 products, four numbers. Else kWarpM / 4 rows by kWarpN / 8 columns.
  using Sums = Acc<T>[kWarpM / (kTensor ? 16 : 4)][kTensor ? kWarpN / 8 : 1][kTensor ? 4 : kWarpN / 8];

  static LK_DEVICE void multiply_plain(const E* stage, Sums& sums) {
    constexpr int kLeft = kWarpM / 4 / kCopy, kRight = kWarpN / 8 / kCopy;
    using Chunk = typename F::Chunk;
    const int lane = tid() % kWarp, warp = tid() / kWarp;
    const int m0 = warp / kWarpsN * kWarpM / kCopy + lane / 8 * kLeft;
    const int n0 = warp % kWarpsN * kWarpN / kCopy + lane % 8 * kRight;
    LK_UNROLL_4 for (int k = 0; k < kPixels; ++k) {
      Chunk left[kLeft], right[kRight];
      LK_UNROLL for (int i = 0; i < kLeft; ++i) left[i] = *reinterpret_cast<const Chunk*>(stage + place<kM>(k, m0 + i));
      LK_UNROLL for (int j = 0; j < kRight; ++j) right[j] =
          *reinterpret_cast<const Chunk*>(stage + kPixels * kM + place<kN>(k, n0 + j));
      LK_UNROLL for (int i = 0; i < kWarpM / 4; ++i) {
        LK_UNROLL for (int j = 0; j < kWarpN / 8; ++j) sums[i][0][j] +=
            to_acc(left[i / kCopy].v[i % kCopy]) * to_acc(right[j / kCopy].v[j % kCopy]);
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
    const int m0 = warp / kWarpsN * kWarpM / kCopy, n0 = warp % kWarpsN * kWarpN / kCopy;
    LK_UNROLL for (int k = 0; k < kPixels / 16; ++k) {
      u32 left[kWarpM / 16][4], right[kWarpN / 16][4];
      // Of matrix lane / 8: left, filters 0-7 or 8-15 first, then pixels; right, pixels first, then columns.
      const int l = 16 * k + lane % 8 + lane / 16 * 8, r = 16 * k + lane % 8 + lane / 8 % 2 * 8;
      LK_UNROLL for (int i = 0; i < kWarpM / 16; ++i)
          load_columns4(left[i], stage + place<kM>(l, m0 + 2 * i + lane / 8 % 2));
      LK_UNROLL for (int j = 0; j < kWarpN / 16; ++j)
          load_columns4(right[j], stage + kPixels * kM + place<kN>(r, n0 + 2 * j + lane / 16));
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
    i64 rest = block_x();
    const int column0 = take(rest, a.tiles) * kN, filter0 = take(rest, a.filter_tiles) * kM;
    const int group = static_cast<int>(rest);
    const i64* cells = p.set_of(group * p.each);

    Loader loader;
    loader.lane = tid() % kLanes;
    loader.pixel = tid() / kLanes;
    loader.filters = 0;
    loader.filter = static_cast<i64>(group) * p.each + filter0 + loader.lane * kCopy;
    LK_UNROLL for (int q = 0; q < kRows; ++q) loader.filters |=
        static_cast<u32>(filter0 + (loader.lane + q * kLanes) * kCopy < p.each) << q;
    LK_UNROLL for (int q = 0; q < kColumns; ++q) {
      const int column = column0 + (loader.lane + q * kLanes) * kCopy, t = column / p.part;
      const Shift s(p, t < p.taps ? cells[t] : -1);
      loader.dy[q] = s.live ? s.dy : kNowhere;
      loader.dx[q] = s.dx;
      loader.columns[q] = a.x + s.dy * p.x.h + s.dx * p.x.w + static_cast<i64>(group) * p.part + column % p.part;
    }

    Sums sums;
    LK_UNROLL for (auto& row : sums) {
      LK_UNROLL for (auto& column : row) { LK_UNROLL for (auto& sum : column) sum = 0; }
    }
    const i64 first = block_y() * a.a_part, last = first + a.a_part < a.pixels ? first + a.a_part : a.pixels;
    const int steps = static_cast<int>((last - first + kPixels - 1) / kPixels);
    loader.left = static_cast<int>(last - first) - loader.pixel;
    i64 n = first + loader.pixel;
    loader.j = take(n, p.wo);
    loader.i = take(n, p.ho);
    loader.n = static_cast<int>(n);
    for (int s = 0; s < kStages - 1; ++s) {
      if (s < steps) loader.load(a, stages + s * kStage);
      close_copies();
    }
    for (int step = 0; step < steps; ++step) {
      await_copies<kStages - 2>();
      sync();
      const int next = step + kStages - 1;
      if (next < steps) loader.load(a, stages + next % kStages * kStage);
      close_copies();
      multiply_stage(stages + step % kStages * kStage, sums);
    }

    const int lane = tid() % kWarp, warp = tid() / kWarp, columns = p.part * p.taps;
    Acc<T>* work = a.work + block_y() * a.weights;
    if constexpr (!kTensor) {
      constexpr int kLeft = kWarpM / 4, kRight = kWarpN / 8;
      LK_UNROLL for (int i = 0; i < kLeft; ++i) {
        const int f = filter0 + warp / kWarpsN * kWarpM + lane / 8 * kLeft + i;
        if (f >= p.each) continue;
        Acc<T>* row = work + (static_cast<i64>(group) * p.each + f) * columns;
        LK_UNROLL for (int j = 0; j < kRight; ++j) {
          const int column = column0 + warp % kWarpsN * kWarpN + lane % 8 * kRight + j;
          if (column < columns) row[column] = sums[i][0][j];
        }
      }
      return;
    } else {
      LK_UNROLL for (int i = 0; i < kWarpM / 16; ++i) {
        LK_UNROLL for (int half = 0; half < 2; ++half) {
          const int f = filter0 + warp / kWarpsN * kWarpM + i * 16 + half * 8 + lane / 4;
          if (f >= p.each) continue;
          Acc<T>* row = work + (static_cast<i64>(group) * p.each + f) * columns;
          LK_UNROLL for (int j = 0; j < kWarpN / 8; ++j) {
            const int column = column0 + warp % kWarpsN * kWarpN + j * 8 + lane % 4 * 2;
            if (column >= columns) continue;
            *reinterpret_cast<Two*>(row + column) = {sums[i][j][2 * half], sums[i][j][2 * half + 1]};
          }
        }
      }
    }
  }
};

}  // namespace lk::rsdc2d::cuda
