// NCHW forward and input gradient of one kernel at stride 1: rows are read where they are, masked at the borders, and
// outputs leave in order, line by line.
#pragma once
#include "lk/lines.h"
#include "multi_dwconv2d/nchw_cut.h"

namespace {
namespace nchw {

#if defined(__AVX512F__)
constexpr bool direct_kernel(i64 k) { return k == 3 || k == 5; }  // measured: not at 7
using Mask = unsigned;
// Lanes whose columns j + lane lie in [0, w).
LK_HOT Mask columns(i64 j, i64 w) {
  const Mask from = j < 0 ? 0xffffu << (-j < 16 ? -j : 16) : 0xffffu;
  return w - j < 16 ? from & ~(0xffffu << larger(0, w - j)) : from;
}
template <class V>
LK_HOT V get_some(const float* p, Mask m) {
  if constexpr (sizeof(V) == 64)
    return (V)_mm512_maskz_loadu_ps(static_cast<__mmask16>(m), p);
  else
    return (V)_mm256_maskz_loadu_ps(static_cast<__mmask8>(m), p);
}
#elif defined(__AVX2__)
constexpr bool direct_kernel(i64 k) { return k == 3; }
using Mask = __m256i;
LK_HOT Mask columns(i64 j, i64 w) {
  const __m256i at = _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(larger(-8, smaller(j, w)))),
                                      _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  return _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_setzero_si256(), at),
                             _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(w)), at));
}
template <class V>
LK_HOT V get_some(const float* p, Mask m) {
  return (V)_mm256_maskload_ps(p, m);
}
#endif

constexpr i64 kPastDirect = 1 << 20;  // outputs from this size on bypass the caches

#if defined(__AVX2__)
// TH rows of a plane; above them and below them lie so many more rows of the map.
struct Band {
  const float *x, *w;
  float* y;
  i64 x_row, width;
  float init;
  i64 above, below;
};

template <int K, int TH, class V>
LK_HOT void direct_column(V (&acc)[TH], const Band& b, const V (&k)[K], const float* x, Mask m) {
  constexpr int R = K / 2;
  const auto row = [&](int r) __attribute__((always_inline)) {
    V s = get_some<V>(x + r * b.x_row, m);
    LK_IN_REGISTER(s);
#pragma GCC unroll 8
    for (int u = 0; u < K; ++u)
      if (r + R - u >= 0 && r + R - u < TH) acc[r + R - u] += s * k[u];
  };
#pragma GCC unroll 4
  for (int q = R; q > 0; --q)
    if (b.above >= q) row(-q);
#pragma GCC unroll 16
  for (int r = 0; r < TH; ++r) row(r);
#pragma GCC unroll 4
  for (int q = 0; q < R; ++q)
    if (b.below > q) row(TH + q);
}

template <int K, class V>
LK_HOT void direct_weights(V (&k)[K], const float* w, int v) {
#pragma GCC unroll 8
  for (int u = 0; u < K; ++u) k[u] = all<V>(w[u * K + v]);
}

// Columns [j, j1) of a band, vector by vector; the last one moves back to end there, where it fits.
template <int K, int TH, class V>
__attribute__((noinline)) void direct_band(const Band& b, i64 j, i64 j1) {
  constexpr int L = lanes<V, float>, R = K / 2;
  // Sums of odd columns apart from those of even ones, or the multiply-adds of narrow tiles wait for each other.
  constexpr bool kApart = K > 3 && sizeof(V) < kVecBytes;
  constexpr bool kHeld = K == 3 && kVecBytes == 64;  // all weights in registers
  V held[K][K];
  if constexpr (kHeld)
#pragma GCC unroll 4
    for (int v = 0; v < K; ++v) direct_weights<K, V>(held[v], b.w, v);
  for (; j < j1; j += L) {
    if (j + L > j1) j = larger(0, j1 - L);
    const float* const x = b.x + j - R;
    V acc[TH];
#pragma GCC unroll 16
    for (int r = 0; r < TH; ++r) acc[r] = all<V>(b.init);
    if constexpr (kHeld) {
#pragma GCC unroll 4
      for (int v = 0; v < K; ++v) direct_column<K, TH, V>(acc, b, held[v], x + v, columns(j + v - R, b.width));
    } else {
      V k[K], odd[TH];
      if constexpr (kApart)
#pragma GCC unroll 16
        for (int r = 0; r < TH; ++r) odd[r] = V{};
      for (int v = 0; v < K; ++v) {
        direct_weights<K, V>(k, b.w, v);
        direct_column<K, TH, V>(acc, b, k, x + v, columns(j + v - R, b.width));
        if constexpr (kApart) {
          if (++v == K) break;
          direct_weights<K, V>(k, b.w, v);
          direct_column<K, TH, V>(odd, b, k, x + v, columns(j + v - R, b.width));
        }
      }
      if constexpr (kApart)
#pragma GCC unroll 16
        for (int r = 0; r < TH; ++r) acc[r] += odd[r];
    }
    float* y = b.y + j;
#pragma GCC unroll 16
    for (int r = 0; r < TH; ++r, y += b.width) put(y, acc[r]);
  }
}

// A kernel for every channel, packed; all maps dense, x in its rows.
struct Direct {
  const Params& p;
  const float *x, *w, *bias;
  float* y;
  Strides from;
  bool past;

  // Rows wait here until they make whole lines; what the last vector of a row writes too much, the next row covers.
  i64 buffer_size() const { return (Lines::kFull + 8 * p.w + 2 * Lines::kLine + 15) / 16 * 16; }

  template <int K, int TH>
  void rows(const Band& b) const {
    using W = Vector<float, kWide>;
    using N = Vector<float, kNarrow>;
    constexpr i64 L = lanes<W, float>, S = lanes<N, float>;
    const i64 rest = p.w % L;
    if (kWide == kNarrow || (rest == 0 || rest > S)) return direct_band<K, TH, W>(b, 0, p.w);
    if (p.w > L) direct_band<K, TH, W>(b, 0, p.w - rest);
    direct_band<K, TH, N>(b, larger(0, p.w - S), p.w);
  }

  // Planes [first, last), counted over all images.
  template <int K>
  void planes(i64 first, i64 last, float* buffer) const {
    const i64 size = p.h * p.w, skip = reinterpret_cast<std::uintptr_t>(y + first * size) % 64 / 4;
    Lines out{buffer, y + first * size - skip, skip, past};
    i64 done = skip;  // in the buffer, before this plane
    const float* plane = x + first / p.c * from.n + first % p.c * from.c;
    for (i64 q = first, c = first % p.c; q < last; ++q, ++c, plane += from.c, done += size) {
      if (c == p.c) c = 0, plane += from.n - p.c * from.c;
      Band b{plane, w + c * K * K, nullptr, from.h, p.w, bias ? bias[c] : 0.0f, 0, 0};
      i64 sevens = sevens_of(p.h);
      for (i64 i = 0; i < p.h;) {
        const int height = p.h < 7 ? 4 : p.h == 7 || sevens-- > 0 ? 7 : 8;
        i = smaller(i, p.h - height);
        if (done + i * p.w >= Lines::kFull) done -= out.flush(done + i * p.w);
        b.x = plane + i * from.h;
        b.y = buffer + done + i * p.w;
        b.above = i;
        b.below = p.h - i - height;
        if (height == 8)
          rows<K, 8>(b);
        else if (height == 7)
          rows<K, 7>(b);
        else
          rows<K, 4>(b);
        i += height;
      }
    }
    out.finish(done);
  }

  void work(i64 kernel, i64 first, i64 last, float* buffer) const {
    if (kernel == 3) return planes<3>(first, last, buffer);
    if constexpr (direct_kernel(5)) planes<5>(first, last, buffer);
  }
};

inline i64 widest(const Params& p) {
  i64 k = 0;
  for (i64 m = 0; m < p.num_branches; ++m) k = larger(k, p.branches[m].kernel);
  return k;
}

inline bool goes_direct(const Params& p, bool input) {
  const Strides &in = input ? p.y : p.x, &out = input ? p.x : p.y;
  if (p.layout != Layout::nchw || p.stride_h != 1 || p.stride_w != 1 || p.h < 4 || p.w < 4 || p.n * p.c < p.threads ||
      !direct_kernel(widest(p)) || (p.num_branches > 1 && p.combine != Combine::add))
    return false;
  for (i64 m = 0; m < p.num_branches; ++m) {
    const Branch& b = p.branches[m];
    if (b.dilation != 1 || b.in_start != 0 || b.out_start != 0 || b.channels != p.c) return false;
  }
  return in.w == 1 && out.w == 1 && out.h == p.w && out.c == p.h * p.w && out.n == p.c * out.c;
}

inline int direct(const Params& p, const float* x, const float* w, const float* bias, float* y, bool input) {
  Plan plan;
  if (!make_plan(plan, p, input ? Pass::input : Pass::forward)) return out_of_memory;
  const i64 kernel = widest(p), taps = kernel * kernel, planes = p.n * p.c;
  const int threads = team(p);
  const bool past = planes * p.h * p.w * 4 >= kPastDirect;
  Direct job{p, x, nullptr, bias, y, input ? p.y : p.x, past};
  const i64 packed = ceil_div(p.c * taps, 16) * 16;
  float* const memory =
      static_cast<float*>(scratch(static_cast<std::size_t>(packed + threads * job.buffer_size()) * sizeof(float)));
  if (!memory) return out_of_memory;
  job.w = memory;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (i64 c = 0; c < p.c; ++c) pack(memory + c * taps, plan, p, w, c, input);
#pragma omp for schedule(static)
    for (int t = 0; t < threads; ++t)
      job.work(kernel, planes * t / threads, planes * (t + 1) / threads, memory + packed + t * job.buffer_size());
    stream_fence();
  }
  return ok;
}

#endif

}  // namespace nchw
}  // namespace
