// The definition, tap by tap, for any call. Every product is one of a real tap with a real pixel, so non-finite values
// go exactly where they should.
#pragma once
#include "rsdc2d/cuda_args.cuh"

namespace lk::rsdc2d::cuda {

// One thread an output.
template <class T>
struct GenericFwd {
  static constexpr int kThreads = 256, kBlocks = sizeof(T) == 8 ? 2 : 4;
  struct Args {
    Problem p;
    const T *x, *w, *bias;
    T* y;
  };

  static LK_DEVICE void run(const Args& a) {
    const Problem& p = a.p;
    const i64 index = block_x() * kThreads + tid();
    if (index >= static_cast<i64>(p.n) * p.co * p.ho * p.wo) return;
    const Place o = place(p.channels_last, index, p.co, p.ho, p.wo);
    const i64* cells = p.set_of(o.c);
    const T* x = a.x + o.n * p.x.n + static_cast<i64>(o.c / p.each * p.part) * p.x.c;
    const T* w = a.w + static_cast<i64>(o.c) * p.part * p.taps;
    Acc<T> sum = 0;
    for (int t = 0; t < p.taps; ++t) {
      const Shift s(p, cells[t]);
      const i64 r = static_cast<i64>(o.i) * p.stride_h + s.dy, q = static_cast<i64>(o.j) * p.stride_w + s.dx;
      if (!s.live || r < 0 || r >= p.h || q < 0 || q >= p.w) continue;
      const T *pixel = x + r * p.x.h + q * p.x.w, *taps = w + t;
      for (int c = 0; c < p.part; ++c) sum += to_acc(taps[static_cast<i64>(c) * p.taps]) * to_acc(pixel[c * p.x.c]);
    }
    if (a.bias) sum += to_acc(a.bias[o.c]);
    a.y[o.n * p.y.n + o.c * p.y.c + o.i * p.y.h + o.j * p.y.w] = from_acc<T>(sum);
  }
};

// One thread a pixel of the input's gradient: it gathers, so nothing is written twice.
template <class T>
struct GenericBwdX {
  static constexpr int kThreads = 256, kBlocks = sizeof(T) == 8 ? 2 : 4;
  struct Args {
    Problem p;
    const T *g, *w;
    T* gx;
  };

  static LK_DEVICE void run(const Args& a) {
    const Problem& p = a.p;
    const i64 index = block_x() * kThreads + tid();
    if (index >= static_cast<i64>(p.n) * p.ci * p.h * p.w) return;
    const Place o = place(p.channels_last, index, p.ci, p.h, p.w);
    const int first = o.c / p.part * p.each, c = o.c % p.part;
    const int together = p.co / p.sets < p.each ? p.co / p.sets : p.each;  // filters of the group that share a set
    Acc<T> sum = 0;
    for (int f = first; f < first + p.each; f += together) {
      const i64* cells = p.set_of(f);
      for (int t = 0; t < p.taps; ++t) {
        const Shift s(p, cells[t]);
        const i64 top = static_cast<i64>(o.i) - s.dy, left = static_cast<i64>(o.j) - s.dx;
        const i64 i = top / p.stride_h, j = left / p.stride_w;
        if (!s.live || top < 0 || i >= p.ho || i * p.stride_h != top) continue;
        if (left < 0 || j >= p.wo || j * p.stride_w != left) continue;
        const T* g = a.g + o.n * p.y.n + f * p.y.c + i * p.y.h + j * p.y.w;
        const T* w = a.w + (static_cast<i64>(f) * p.part + c) * p.taps + t;
        for (int q = 0; q < together; ++q)
          sum += to_acc(w[static_cast<i64>(q) * p.part * p.taps]) * to_acc(g[q * p.y.c]);
      }
    }
    a.gx[o.n * p.x.n + o.c * p.x.c + o.i * p.x.h + o.j * p.x.w] = from_acc<T>(sum);
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
