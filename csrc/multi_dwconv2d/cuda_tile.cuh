// Kernels 1, 3, 5 and 7 of dilation 1 on tiles in shared memory, in fp32. A block takes a tile of one channel (nchw) or
// of 32 channels, one a lane (nhwc), and a thread 4 x 4 outputs: every number it reads from shared memory meets up to
// four rows of its sums. A call is a list of steps over one tile of sums, so that all branches share the input's tile,
// `add` is one merged kernel, and the input's gradient at stride 1 is the same with turned kernels.
#pragma once
#include "multi_dwconv2d/cuda_args.cuh"

namespace lk::multi_dwconv2d::cuda {

constexpr int kMaxSteps = 8, kTileEdge = 4, kLeft = 4;

// Sums += in (*) the sum of branches first..last, each in the centre of `kernel` x `kernel`.
struct Step {
  int kernel, first, last;
  bool load, also, reset, store;  // the input's tile anew, or added to it; sums from zero; sums to the output
  i64 in_c, out_c;                // first channels of the slab read and of the slab written
};

// Images, rows and columns of outputs that a block takes, each a multiple of what a thread takes.
struct Tile {
  int images, rows, columns, reach;
};

struct TileArgs {
  const void *in, *w, *bias;
  void* out;
  int n, c, h, wide, ho, wo;  // of input and output maps
  Strides in_s, out_s;
  DType dtype;
  bool turned, vectors;  // kernels turned by 180 degrees; four columns at once are aligned
  int steps;
  Step step[kMaxSteps];
  Branch branch[kMaxBranches];
  Tile tile;
  Divider by_quads, by_rows;  // of a line of the input's tile, of its lines
};

template <class T>
LK_DEVICE Quad load4(const T* p);
template <>
LK_DEVICE Quad load4<float>(const float* p) {
  return *reinterpret_cast<const Quad*>(p);
}
struct alignas(8) Pair16 {
  u32 lo, hi;
};
template <class T>
LK_DEVICE Quad load4(const T* p) {
  const Pair16 v = *reinterpret_cast<const Pair16*>(p);
  return {{to_acc(T{static_cast<u16>(v.lo)}), to_acc(T{static_cast<u16>(v.lo >> 16)}),
           to_acc(T{static_cast<u16>(v.hi)}), to_acc(T{static_cast<u16>(v.hi >> 16)})}};
}
LK_DEVICE void store4(float* p, const Quad& q) { *reinterpret_cast<Quad*>(p) = q; }
template <class T>
LK_DEVICE void store4(T* p, const Quad& q) {
  Pair16 v;
  v.lo = from_acc<T>(q.v[0]).bits | static_cast<u32>(from_acc<T>(q.v[1]).bits) << 16;
  v.hi = from_acc<T>(q.v[2]).bits | static_cast<u32>(from_acc<T>(q.v[3]).bits) << 16;
  *reinterpret_cast<Pair16*>(p) = v;
}

// Where a tile lies, and the shape of its input in shared memory.
template <bool kNhwc, int S>
struct TilePlan {
  int n0, c0, i0, j0;  // first image, channel, output row and column
  int rows, columns;   // of the input, halo included; in floats for nchw, in pixels for nhwc
  int left;

  LK_ANYWHERE static int rows_of(const Tile& t) { return (t.rows - 1) * S + 1 + 2 * t.reach; }
  LK_ANYWHERE static int columns_of(const Tile& t) {
    if (kNhwc) return (t.columns - 1) * S + 1 + 2 * t.reach;
    const int wide = t.columns * S + 2 * kLeft;
    return t.columns < 32 && wide % 8 == 0 ? wide + 4 : wide;  // four rows apart in other banks
  }
  LK_ANYWHERE static int floats(const Tile& t) { return t.images * rows_of(t) * columns_of(t) * (kNhwc ? kWarp : 1); }

  // The index-th tile of channel (or channels) `unit`: columns first, then rows, then images.
  LK_DEVICE TilePlan(const TileArgs& a, i64 index, int unit) {
    const Tile& t = a.tile;
    j0 = take(index, (a.wo + t.columns - 1) / t.columns) * t.columns;
    i0 = take(index, (a.ho + t.rows - 1) / t.rows) * t.rows;
    n0 = static_cast<int>(index) * t.images;
    c0 = kNhwc ? unit * kWarp : unit;
    rows = rows_of(t);
    columns = columns_of(t);
    left = kNhwc ? t.reach : kLeft;
  }

  // The input's tile of the slab that begins at channel `slab`, zeros outside the map; added to what is there if
  // `also`.
  template <class T>
  LK_DEVICE void load(const TileArgs& a, float* tile, i64 slab, bool also, int threads) const {
    const T* in = static_cast<const T*>(a.in);
    const int top = i0 * S - a.tile.reach, first = j0 * S - left;
    if (kNhwc) {
      const int lane = tid() % kWarp, warps = threads / kWarp;
      const bool real = c0 + lane < a.c;
      for (int line = tid() / kWarp; line < a.tile.images * rows; line += warps) {
        const int image = a.by_rows(line), row = top + line - image * rows, n = n0 + image;
        const bool there = real && n < a.n && row >= 0 && row < a.h;
        const T* from = in + at(a.in_s, n, slab + c0 + lane, row, first);
        float* to = tile + line * columns * kWarp + lane;
        LK_UNROLL_4 for (int q = 0; q < columns; ++q) {
          float v = 0;
          if (there && first + q >= 0 && first + q < a.wide) v = to_acc(from[q * a.in_s.w]);
          to[q * kWarp] = also ? to[q * kWarp] + v : v;
        }
      }
      return;
    }
    const int quads = columns / 4, items = a.tile.images * rows * quads;
    for (int p = tid(); p < items; p += threads) {
      const int line = a.by_quads(p), column = first + 4 * (p - line * quads);
      const int image = a.by_rows(line), row = top + line - image * rows, n = n0 + image;
      Quad v{{0, 0, 0, 0}};
      if (n < a.n && row >= 0 && row < a.h) {
        const T* from = in + at(a.in_s, n, slab + c0, row, 0);
        if (a.vectors && column >= 0 && column + 3 < a.wide) {
          v = load4<T>(from + column);
        } else {
          LK_UNROLL for (int e = 0; e < 4; ++e) {
            if (column + e >= 0 && column + e < a.wide) v.v[e] = to_acc(from[column + e]);
          }
        }
      }
      Quad* to = reinterpret_cast<Quad*>(tile) + p;
      if (also) {
        LK_UNROLL for (int e = 0; e < 4; ++e) v.v[e] += to->v[e];
      }
      *to = v;
    }
  }

  LK_DEVICE void load(const TileArgs& a, float* tile, i64 slab, bool also, int threads) const {
    if (a.dtype == DType::f32) return load<float>(a, tile, slab, also, threads);
    if (a.dtype == DType::bf16) return load<bf16>(a, tile, slab, also, threads);
    load<f16>(a, tile, slab, also, threads);
  }
};

// The inputs that one row of 4 outputs meets with a kernel of K columns; `row` is where the tile's row, moved by
// the thread's columns, begins.
template <bool kNhwc, int S, int K>
struct Window {
  static constexpr int kFirst = kNhwc ? 0 : kLeft - K / 2;
  static constexpr int kCount = 3 * S + K;
  static constexpr int kQuads = (kFirst + kCount + 3) / 4;
  float v[kNhwc ? kCount : 4 * kQuads];

  LK_DEVICE void load(const float* row) {
    if (kNhwc) {
      LK_UNROLL for (int q = 0; q < kCount; ++q) v[q] = row[q * kWarp];
    } else {
      LK_UNROLL for (int q = 0; q < kQuads; ++q) {
        const Quad four = *reinterpret_cast<const Quad*>(row + 4 * q);
        LK_UNROLL for (int e = 0; e < 4; ++e) v[4 * q + e] = four.v[e];
      }
    }
  }
  LK_DEVICE float operator()(int j, int tap) const { return v[kFirst + j * S + tap]; }
};

template <bool kNhwc, int S, int kMax>
struct TileConv {
  static constexpr int kThreads = kNhwc ? 256 : 128, kBlocks = kNhwc ? 2 : (kMax > 3 ? 4 : 6);
  using Args = TileArgs;
  using Plan = TilePlan<kNhwc, S>;
  using Sums = float[kTileEdge][kTileEdge];

  // Floats of one kernel in shared memory.
  LK_ANYWHERE static constexpr int weights(int kernel) { return (kernel * kernel + 3) / 4 * 4 * (kNhwc ? kWarp : 1); }
  static int shared_bytes(const Tile& t) { return 4 * (Plan::floats(t) + weights(2 * t.reach + 1)); }

  template <class T>
  static LK_DEVICE void load_weights(const TileArgs& a, const Step& s, float* to, int c0) {
    const T* w = static_cast<const T*>(a.w);
    const int taps = s.kernel * s.kernel, count = kNhwc ? taps * kWarp : taps;
    for (int i = tid(); i < count; i += kThreads) {
      const int tap = kNhwc ? i / kWarp : i, c = c0 + (kNhwc ? i % kWarp : 0);
      const int u = tap / s.kernel, v = tap - u * s.kernel;
      float sum = 0;
      for (int m = s.first; m <= s.last && c < a.c; ++m) {
        const int k = static_cast<int>(a.branch[m].kernel), edge = (s.kernel - k) / 2, y = u - edge, x = v - edge;
        if (y < 0 || y >= k || x < 0 || x >= k) continue;
        const int at = a.turned ? k * k - 1 - (y * k + x) : y * k + x;
        sum += to_acc(w[a.branch[m].weight_start + static_cast<i64>(c) * k * k + at]);
      }
      to[i] = sum;
    }
  }

  template <int K>
  static LK_DEVICE void add(const TileArgs& a, const Plan& plan, Sums& sums, const float* tile, const float* weights) {
    const int edge = a.tile.reach - K / 2, unit = kNhwc ? kWarp : 1, line = plan.columns * unit;
    // nchw: the window's place in its quads already allows for K.
    const float* from = tile + edge * line + (kNhwc ? edge * unit : 0);
    float w[K * K];
    LK_UNROLL for (int i = 0; i < K * K; ++i) w[i] = weights[i * unit];
    LK_UNROLL for (int i = 0; i < (kTileEdge - 1) * S + K; ++i) {
      Window<kNhwc, S, K> in;
      in.load(from + i * line);
      LK_UNROLL for (int r = 0; r < kTileEdge; ++r) {
        const int u = i - r * S;
        if (u < 0 || u >= K) continue;
        LK_UNROLL for (int v = 0; v < K; ++v) {
          LK_UNROLL for (int j = 0; j < kTileEdge; ++j) sums[r][j] += w[u * K + v] * in(j, v);
        }
      }
    }
  }

  template <class T>
  static LK_DEVICE void store(const TileArgs& a, const Step& s, const Sums& sums, int n, int c, int i, int j) {
    const float bias = a.bias ? to_acc(static_cast<const T*>(a.bias)[s.out_c + c]) : 0;
    T* out = static_cast<T*>(a.out) + at(a.out_s, n, s.out_c + c, i, j);
    LK_UNROLL for (int r = 0; r < kTileEdge; ++r) {
      if (i + r >= a.ho) return;
      T* to = out + r * a.out_s.h;
      if (!kNhwc && a.vectors && j + 3 < a.wo) {
        store4(to, Quad{{sums[r][0] + bias, sums[r][1] + bias, sums[r][2] + bias, sums[r][3] + bias}});
        continue;
      }
      LK_UNROLL for (int e = 0; e < kTileEdge; ++e) {
        if (j + e < a.wo) to[e * a.out_s.w] = from_acc<T>(sums[r][e] + bias);
      }
    }
  }

  static LK_DEVICE void run(const Args& a) {
    const Tile& t = a.tile;
    const Plan plan(a, block_x(), block_y());
    float* tile = reinterpret_cast<float*>(shared());
    float* weights_at = tile + Plan::floats(t);
    const int lane = tid() % kWarp;
    int piece = kNhwc ? tid() / kWarp : tid();
    const int across = t.columns / kTileEdge, down = t.rows / kTileEdge;
    const bool busy = piece < t.images * across * down;
    const int j = piece % across * kTileEdge, i = piece / across % down * kTileEdge, image = piece / (across * down);
    const int unit = kNhwc ? kWarp : 1;
    const float* mine = tile + ((image * plan.rows + i * S) * plan.columns + j * S) * unit + (kNhwc ? lane : 0);
    const int c = plan.c0 + (kNhwc ? lane : 0), n = plan.n0 + image;

    Sums sums;
    for (int q = 0; q < a.steps; ++q) {
      const Step& s = a.step[q];
      if (q) sync();  // the step before has read what is written now
      if (s.load) plan.load(a, tile, s.in_c, s.also, kThreads);
      if (a.dtype == DType::f32) {
        load_weights<float>(a, s, weights_at, plan.c0);
      } else if (a.dtype == DType::bf16) {
        load_weights<bf16>(a, s, weights_at, plan.c0);
      } else {
        load_weights<f16>(a, s, weights_at, plan.c0);
      }
      sync();
      if (!busy) continue;
      if (s.reset) {
        LK_UNROLL for (int r = 0; r < kTileEdge; ++r) { LK_UNROLL for (int e = 0; e < kTileEdge; ++e) sums[r][e] = 0; }
      }
      const float* w = weights_at + (kNhwc ? lane : 0);
      if (s.kernel == 3) {
        add<3>(a, plan, sums, mine, w);
      } else if (s.kernel == 1) {
        add<1>(a, plan, sums, mine, w);
      } else if constexpr (kMax > 3) {
        if (s.kernel == 5) {
          add<5>(a, plan, sums, mine, w);
        } else {
          add<7>(a, plan, sums, mine, w);
        }
      }
      if (!s.store || n >= a.n || c >= a.c || plan.j0 + j >= a.wo) continue;
      if (a.dtype == DType::f32) {
        store<float>(a, s, sums, n, c, plan.i0 + i, plan.j0 + j);
      } else if (a.dtype == DType::bf16) {
        store<bf16>(a, s, sums, n, c, plan.i0 + i, plan.j0 + j);
      } else {
        store<f16>(a, s, sums, n, c, plan.i0 + i, plan.j0 + j);
      }
    }
  }
};

}  // namespace lk::multi_dwconv2d::cuda
