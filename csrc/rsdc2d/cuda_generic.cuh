// The definition, tap by tap, for any call. Every product is one of a real tap with a real pixel, so non-finite values
// go exactly where they should.
#pragma once
#include "rsdc2d/cuda_args.cuh"

namespace lk::rsdc2d::cuda {

// A thread computes one column of so many rows, which share taps and weights.
constexpr int kGenericRows = 4;

// One thread an output of each of those rows.
template <class T>
struct GenericFwd {
  static constexpr int kThreads = 256, kBlocks = sizeof(T) == 8 ? 2 : 4, kRows = kGenericRows;
  struct Args {
    Problem p;
    const T *x, *w, *bias;
    T* y;
  };

  static i64 threads(const Problem& p) { return ceil_div(p.ho, kRows) * p.n * p.co * p.wo; }

  static LK_DEVICE void run(const Args& a) {
    const Problem& p = a.p;
    const i64 index = block_x() * kThreads + tid();
    const int bands = (p.ho + kRows - 1) / kRows;
    if (index >= static_cast<i64>(p.n) * p.co * bands * p.wo) return;
    Place o = place(p.channels_last, index, p.co, bands, p.wo);
    o.i *= kRows;
    const i64* cells = p.set_of(o.c);
    const T* x = a.x + o.n * p.x.n + static_cast<i64>(o.c / p.each * p.part) * p.x.c;
    const T* w = a.w + static_cast<i64>(o.c) * p.part * p.taps;
    Acc<T> sum[kRows];
    LK_UNROLL for (int u = 0; u < kRows; ++u) sum[u] = 0;
    for (int t = 0; t < p.taps; ++t) {
      const Shift s(p, cells[t]);
      const int q = o.j * p.stride_w + s.dx;
      if (!s.live || q < 0 || q >= p.w) continue;
      bool in[kRows];
      const T* row[kRows];
      LK_UNROLL for (int u = 0; u < kRows; ++u) {
        const i64 r = static_cast<i64>(o.i + u) * p.stride_h + s.dy;
        in[u] = r >= 0 && r < p.h && o.i + u < p.ho;
        row[u] = x + (in[u] ? r * p.x.h : 0) + q * p.x.w;
      }
      for (int c = 0; c < p.part; ++c) {
        const Acc<T> weight = to_acc(w[static_cast<i64>(c) * p.taps + t]);
        LK_UNROLL for (int u = 0; u < kRows; ++u) {
          if (in[u]) sum[u] += weight * to_acc(row[u][c * p.x.c]);
        }
      }
    }
    const Acc<T> bias = a.bias ? to_acc(a.bias[o.c]) : Acc<T>(0);
    T* y = a.y + o.n * p.y.n + o.c * p.y.c + o.j * p.y.w;
    LK_UNROLL for (int u = 0; u < kRows; ++u) {
      if (o.i + u < p.ho) y[(o.i + u) * p.y.h] = from_acc<T>(a.bias ? sum[u] + bias : sum[u]);
    }
  }
};

// index / step of an index that may be outside the image, or -1 if it is no multiple.
LK_DEVICE int source(int index, int step) {
  if (index < 0 || step == 1) return index;
  const u32 found = static_cast<u32>(index) / static_cast<u32>(step);
  return found * static_cast<u32>(step) == static_cast<u32>(index) ? static_cast<int>(found) : -1;
}

// One thread a pixel of the input's gradient in each of those rows: it gathers, so nothing is written twice.
template <class T>
struct GenericBwdX {
  static constexpr int kThreads = 256, kBlocks = sizeof(T) == 8 ? 2 : 3, kRows = kGenericRows;
  struct Args {
    Problem p;
    const T *g, *w;
    T* gx;
  };

  static i64 threads(const Problem& p) { return ceil_div(p.h, kRows) * p.n * p.ci * p.w; }

  static LK_DEVICE void run(const Args& a) {
    const Problem& p = a.p;
    const i64 index = block_x() * kThreads + tid();
    const int bands = (p.h + kRows - 1) / kRows;
    if (index >= static_cast<i64>(p.n) * p.ci * bands * p.w) return;
    Place o = place(p.channels_last, index, p.ci, bands, p.w);
    o.i *= kRows;
    const int first = o.c / p.part * p.each, c = o.c % p.part;
    const int together = p.co / p.sets < p.each ? p.co / p.sets : p.each;  // filters of the group that share a set
    Acc<T> sum[kRows];
    LK_UNROLL for (int u = 0; u < kRows; ++u) sum[u] = 0;
    for (int f = first; f < first + p.each; f += together) {
      const i64* cells = p.set_of(f);
      for (int t = 0; t < p.taps; ++t) {
        const Shift s(p, cells[t]);
        const int j = source(o.j - s.dx, p.stride_w);
        if (!s.live || j < 0 || j >= p.wo) continue;
        bool in[kRows];
        const T* row[kRows];
        const T* g = a.g + o.n * p.y.n + f * p.y.c + j * p.y.w;
        LK_UNROLL for (int u = 0; u < kRows; ++u) {
          const int i = source(o.i + u - s.dy, p.stride_h);
          in[u] = i >= 0 && i < p.ho;
          row[u] = g + (in[u] ? i * p.y.h : 0);
        }
        const T* w = a.w + (static_cast<i64>(f) * p.part + c) * p.taps + t;
        for (int q = 0; q < together; ++q) {
          const Acc<T> weight = to_acc(w[static_cast<i64>(q) * p.part * p.taps]);
          LK_UNROLL for (int u = 0; u < kRows; ++u) {
            if (in[u]) sum[u] += weight * to_acc(row[u][q * p.y.c]);
          }
        }
      }
    }
    T* gx = a.gx + o.n * p.x.n + o.c * p.x.c + o.j * p.x.w;
    LK_UNROLL for (int u = 0; u < kRows; ++u) {
      if (o.i + u < p.h) gx[(o.i + u) * p.x.h] = from_acc<T>(sum[u]);
    }
  }
};

// First stage of the weight gradient. A block sums up to kTaps taps over one part of the output's rows: of one filter
// and channel with lanes along a row (nchw), or of 32 pairs of them, one a lane (nhwc). A part lies as [filter, tap,
// channel].
template <class T>
struct GenericBwdW {
  static constexpr int kThreads = 256, kBlocks = 2, kTaps = 5, kWarps = kThreads / kWarp;
  struct Args {
    Problem p;
    const T *g, *x;
    Acc<T>* work;
    i64 rows_a_part;
  };

  static i64 pieces(const Problem& p) { return ceil_div(p.taps, kTaps); }
  static i64 blocks(const Problem& p) {
    const i64 pairs = static_cast<i64>(p.co) * p.part;
    return (p.channels_last ? ceil_div(pairs, kWarp) : pairs) * pieces(p);
  }
  static constexpr int shared_bytes() { return kWarps * kTaps * kWarp * sizeof(Acc<T>); }

  static LK_DEVICE void run(const Args& a) {
    using A = Acc<T>;
    const Problem& p = a.p;
    const int lane = tid() % kWarp, warp = tid() / kWarp;
    i64 pair = block_x();
    const int first_tap = take(pair, (p.taps + kTaps - 1) / kTaps) * kTaps;
    if (p.channels_last) pair = pair * kWarp + lane;
    const int count = p.taps - first_tap < kTaps ? p.taps - first_tap : kTaps;
    const bool real = pair < static_cast<i64>(p.co) * p.part;
    i64 filter = real ? pair : 0;
    const int c = take(filter, p.part), o = static_cast<int>(filter);

    int dy[kTaps], dx[kTaps];
    u32 live = 0;
    LK_UNROLL for (int v = 0; v < kTaps; ++v) {
      const Shift s(p, v < count ? p.set_of(o)[first_tap + v] : -1);
      dy[v] = s.dy;
      dx[v] = s.dx;
      live |= static_cast<u32>(s.live) << v;
    }
    A sum[kTaps];
    LK_UNROLL for (int v = 0; v < kTaps; ++v) sum[v] = 0;
    const i64 rows = static_cast<i64>(p.n) * p.ho, first = block_y() * a.rows_a_part;
    const i64 last = first + a.rows_a_part < rows ? first + a.rows_a_part : rows;
    for (i64 row = first + warp; row < last && real; row += kWarps) {
      i64 n = row;
      const int i = take(n, p.ho);
      const T* x = a.x + n * p.x.n + (static_cast<i64>(o / p.each) * p.part + c) * p.x.c;
      const T* g = a.g + n * p.y.n + o * p.y.c + i * p.y.h;
      for (int j = p.channels_last ? 0 : lane; j < p.wo; j += p.channels_last ? 1 : kWarp) {
        const A grad = to_acc(g[j * p.y.w]);
        LK_UNROLL for (int v = 0; v < kTaps; ++v) {
          const int r = i * p.stride_h + dy[v], q = j * p.stride_w + dx[v];
          if ((live >> v & 1) && r >= 0 && r < p.h && q >= 0 && q < p.w)
            sum[v] += grad * to_acc(x[r * p.x.h + q * p.x.w]);
        }
      }
    }

    A* all = reinterpret_cast<A*>(shared());  // [warp][tap][lane]
    LK_UNROLL for (int v = 0; v < kTaps; ++v) {
      if (!p.channels_last)
        for (int d = kWarp / 2; d; d /= 2) sum[v] += shuffle_xor(sum[v], d);
      all[(warp * kTaps + v) * kWarp + lane] = sum[v];
    }
    sync();
    if (!real || (!p.channels_last && lane)) return;  // nchw: lane 0 has them all
    for (int v = warp; v < count; v += kWarps) {
      A total = 0;
      for (int q = 0; q < kWarps; ++q) total += all[(q * kTaps + v) * kWarp + lane];
      a.work[((static_cast<i64>(block_y()) * p.co + o) * p.taps + first_tap + v) * p.part + c] = total;
    }
  }
};

// Second stage: the parts in their order, [filter, tap, channel] to [filter, channel, tap].
template <class T>
struct SumTaps {
  static constexpr int kThreads = 256, kBlocks = 4;
  struct Args {
    const Acc<T>* work;
    T* gw;
    i64 weights;
    int parts, taps, part;
  };
  static LK_DEVICE void run(const Args& a) {
    i64 i = block_x() * kThreads + tid();
    if (i >= a.weights) return;
    Acc<T> sum = 0;
    for (int q = 0; q < a.parts; ++q) sum += a.work[q * a.weights + i];
    const int c = take(i, a.part), t = take(i, a.taps);
    a.gw[(i * a.part + c) * a.taps + t] = from_acc<T>(sum);
  }
};

}  // namespace lk::rsdc2d::cuda
