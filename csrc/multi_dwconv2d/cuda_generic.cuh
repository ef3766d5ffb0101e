// The definition, tap by tap, for any kernel size, dilation, stride, strides of memory and combination. Every product
// is one of a real tap with a real pixel, so non-finite values go exactly where they should.
#pragma once
#include "multi_dwconv2d/cuda_args.cuh"

namespace lk::multi_dwconv2d::cuda {

// One thread an input channel's output pixel, of all branches.
template <class T>
struct GenericFwd {
  static constexpr int kThreads = 256, kBlocks = sizeof(T) == 8 ? 2 : 4;
  struct Args {
    Problem p;
    const T *x, *w, *bias;
    T* y;
  };

  static LK_DEVICE Acc<T> window(const Problem& p, const Branch& b, const T* x, const T* taps, const Place& o) {
    const int k = static_cast<int>(b.kernel);
    const i64 d = b.dilation, top = static_cast<i64>(o.i) * p.stride_h - (k / 2) * d,
              left = static_cast<i64>(o.j) * p.stride_w - (k / 2) * d;
    Acc<T> sum = 0;
    for (int u = 0; u < k; ++u) {
      const i64 r = top + u * d;
      if (r < 0 || r >= p.h) continue;
      const T* row = x + r * p.x.h;
      for (int v = 0; v < k; ++v) {
        const i64 q = left + v * d;
        if (q >= 0 && q < p.w) sum += to_acc(taps[u * k + v]) * to_acc(row[q * p.x.w]);
      }
    }
    return sum;
  }

  static LK_DEVICE void run(const Args& a) {
    const Problem& p = a.p;
    const i64 index = block_x() * kThreads + tid();
    if (index >= static_cast<i64>(p.n) * p.c * p.ho * p.wo) return;
    const Place o = place(p.layout == Layout::nhwc, index, p.c, p.ho, p.wo);
    const T* x = a.x + o.n * p.x.n + o.c * p.x.c;
    T* y = a.y + at(p.y, o.n, 0, o.i, o.j);
    Acc<T> sum = 0;
    for (int m = 0; m < p.branches; ++m) {
      const Branch& b = p.branch[m];
      const i64 c = o.c - b.in_start;
      if (c < 0 || c >= b.channels) continue;
      const Acc<T> one = window(p, b, x, a.w + b.weight_start + c * b.kernel * b.kernel, o);
      sum = p.combine == Combine::concat ? one : sum + one;
      if (p.combine == Combine::add && m + 1 < p.branches) continue;
      const i64 out = b.out_start + c;
      y[out * p.y.c] = from_acc<T>(a.bias ? sum + to_acc(a.bias[out]) : sum);
    }
  }
};

// The sum of the output gradients that branch m meets: its own, or its own and all later ones.
template <class T>
LK_DEVICE Acc<T> gradient(const Problem& p, const T* g, int m, i64 c) {
  Acc<T> sum = to_acc(g[(p.branch[m].out_start + c) * p.y.c]);
  if (p.combine == Combine::cumulative)
    for (int q = m + 1; q < p.branches; ++q) sum += to_acc(g[(p.branch[q].out_start + c) * p.y.c]);
  return sum;
}

// One thread a pixel of the input's gradient: it gathers, so nothing is written twice.
template <class T>
struct GenericBwdX {
  static constexpr int kThreads = 256, kBlocks = 4;
  struct Args {
    Problem p;
    const T *g, *w;
    T* gx;
  };

  static LK_DEVICE void run(const Args& a) {
    const Problem& p = a.p;
    const i64 index = block_x() * kThreads + tid();
    if (index >= static_cast<i64>(p.n) * p.c * p.h * p.w) return;
    const Place o = place(p.layout == Layout::nhwc, index, p.c, p.h, p.w);
    Acc<T> sum = 0;
    for (int m = 0; m < p.branches; ++m) {
      const Branch& b = p.branch[m];
      const i64 c = o.c - b.in_start;
      if (c < 0 || c >= b.channels) continue;
      const int k = static_cast<int>(b.kernel);
      const T* taps = a.w + b.weight_start + c * k * k;
      for (int u = 0; u < k; ++u) {
        const i64 top = o.i - (u - k / 2) * b.dilation, i = top / p.stride_h;
        if (top < 0 || i >= p.ho || i * p.stride_h != top) continue;
        const T* row = a.g + o.n * p.y.n + i * p.y.h;
        for (int v = 0; v < k; ++v) {
          const i64 left = o.j - (v - k / 2) * b.dilation, j = left / p.stride_w;
          if (left < 0 || j >= p.wo || j * p.stride_w != left) continue;
          sum += to_acc(taps[u * k + v]) * gradient(p, row + j * p.y.w, m, c);
        }
      }
    }
    a.gx[at(p.x, o.n, o.c, o.i, o.j)] = from_acc<T>(sum);
  }
};

// First stage of the weight gradient. A block sums up to kTaps taps of one kernel row over one part of the output's
// rows: of one channel with lanes along a row (nchw), or of 32 channels, one a lane (nhwc).
template <class T>
struct GenericBwdW {
  static constexpr int kThreads = 256, kBlocks = 2, kTaps = 8, kWarps = kThreads / kWarp;
  struct Args {
    Problem p;
    const T *g, *x;
    Acc<T>* work;
    i64 weights, rows_a_part;
  };

  // Blocks of branch m: channels (or 32 of them), kernel rows, pieces of a kernel row.
  static i64 blocks(const Problem& p, int m) {
    const Branch& b = p.branch[m];
    return (p.layout == Layout::nhwc ? ceil_div(b.channels, kWarp) : b.channels) * b.kernel * ceil_div(b.kernel, kTaps);
  }
  static constexpr int shared_bytes() { return kWarps * kTaps * kWarp * sizeof(Acc<T>); }

  static LK_DEVICE void run(const Args& a) {
    using A = Acc<T>;
    const Problem& p = a.p;
    const bool nhwc = p.layout == Layout::nhwc;
    const int lane = tid() % kWarp, warp = tid() / kWarp;
    i64 unit = block_x();
    int m = 0, pieces = 1;
    i64 k = 1;
    for (;; ++m) {
      k = p.branch[m].kernel;
      pieces = static_cast<int>((k + kTaps - 1) / kTaps);
      const i64 groups = nhwc ? (p.branch[m].channels + kWarp - 1) / kWarp : p.branch[m].channels;
      if (unit < groups * k * pieces) break;
      unit -= groups * k * pieces;
    }
    const Branch& b = p.branch[m];
    const int v0 = take(unit, pieces) * kTaps, u = take(unit, static_cast<int>(k));
    const i64 c = nhwc ? unit * kWarp + lane : unit;
    const int count = k - v0 < kTaps ? static_cast<int>(k - v0) : kTaps;
    const bool real = c < b.channels;

    A sum[kTaps];
    LK_UNROLL for (int v = 0; v < kTaps; ++v) sum[v] = 0;
    const i64 rows = static_cast<i64>(p.n) * p.ho, first = block_y() * a.rows_a_part;
    const i64 last = first + a.rows_a_part < rows ? first + a.rows_a_part : rows;
    for (i64 row = first + warp; row < last && real; row += kWarps) {
      i64 n = row;
      const int i = take(n, p.ho);
      const i64 r = static_cast<i64>(i) * p.stride_h + (u - k / 2) * b.dilation;
      if (r < 0 || r >= p.h) continue;
      const T* x = a.x + at(p.x, n, b.in_start + c, r, 0);
      const T* g = a.g + at(p.y, n, 0, i, 0);
      for (int j = nhwc ? 0 : lane; j < p.wo; j += nhwc ? 1 : kWarp) {
        const A grad = gradient(p, g + j * p.y.w, m, c);
        LK_UNROLL for (int v = 0; v < kTaps; ++v) {
          const i64 q = static_cast<i64>(j) * p.stride_w + (v0 + v - k / 2) * b.dilation;
          if (v < count && q >= 0 && q < p.w) sum[v] += grad * to_acc(x[q * p.x.w]);
        }
      }
    }

    A* all = reinterpret_cast<A*>(shared());  // [warp][tap][lane]
    LK_UNROLL for (int v = 0; v < kTaps; ++v) {
      if (!nhwc)
        for (int d = kWarp / 2; d; d /= 2) sum[v] += shuffle_xor(sum[v], d);
      all[(warp * kTaps + v) * kWarp + lane] = sum[v];
    }
    sync();
    // Thread (tap, lane), a warp's worth of them a tap; nchw: lane 0 alone has something to write.
    const int v = tid() / kWarp;
    if (v >= count || !real || (!nhwc && lane)) return;
    A total = 0;
    for (int q = 0; q < kWarps; ++q) total += all[(q * kTaps + v) * kWarp + lane];
    a.work[block_y() * a.weights + b.weight_start + (c * k + u) * k + v0 + v] = total;
  }
};

// Second stage: the parts in their order.
template <class T>
struct SumParts {
  static constexpr int kThreads = 256, kBlocks = 4;
  struct Args {
    const Acc<T>* work;
    T* gw;
    i64 weights;
    int parts;
  };
  static LK_DEVICE void run(const Args& a) {
    const i64 i = block_x() * kThreads + tid();
    if (i >= a.weights) return;
    Acc<T> sum = 0;
    for (int q = 0; q < a.parts; ++q) sum += a.work[q * a.weights + i];
    a.gw[i] = from_acc<T>(sum);
  }
};

}  // namespace lk::multi_dwconv2d::cuda
