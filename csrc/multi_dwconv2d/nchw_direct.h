// NCHW forward and input gradient of one kernel at stride 1: rows are read where they are, masked at the borders, and
// outputs leave in order, line by line.
#pragma once
#include "lk/lines.h"
#include "multi_dwconv2d/nchw_band.h"
#include "multi_dwconv2d/nchw_cut.h"
#include "multi_dwconv2d/nchw_merge.h"
#include "multi_dwconv2d/nchw_pairs.h"

namespace {
namespace nchw {

// Measured: 32-byte vectors have too few registers for 7x7 on rows of several.
#if defined(__AVX512F__)
constexpr bool direct_kernel(i64 k, i64) { return k == 3 || k == 5 || k == 7; }
#else
constexpr bool direct_kernel(i64 k, i64 width) { return k == 3 || (k == 7 && width < 16); }
#endif

constexpr i64 kPastDirect = 16 << 20;  // outputs from this size on bypass the caches
constexpr i64 kReach = 16;             // elements before and after a plane that kernels may load

#if defined(__AVX2__)
// Bands this high read each row once a tap column; 0: lower ones do.
template <int K>
constexpr int tall_band(i64 h) {
  return K == 7 && kVecBytes == 64 && h % 14 == 0 ? 14 : 0;
}

// A kernel for every channel, packed; all maps dense, x in its rows.
struct Direct {
  const Params& p;
  const float *x, *w, *bias;
  float* y;
  Strides from;
  bool past, pairs;  // pairs: of rows, weights packed for them

  // Rows wait here until they make whole lines; what the last vector of a row writes too much, the next row covers.
  i64 buffer_size() const { return (Lines::kFull + 16 * p.w + 2 * Lines::kLine + 15) / 16 * 16; }

  template <int K, int TH>
  void rows(const Band& b) const {
    using W = Vector<float, kWide>;
    using N = Vector<float, kNarrow>;
    constexpr i64 L = lanes<W, float>, S = lanes<N, float>;
    const i64 rest = p.w % L;
    constexpr bool kWideOnly = kWide == kNarrow || TH > 14;
    if (kWideOnly || rest == 0 || rest > S) return band<K, TH, W, false>(b, 0, p.w);
    if constexpr (!kWideOnly) {
      if (p.w > L) band<K, TH, W, false>(b, 0, p.w - rest);
      band<K, TH, N, false>(b, larger(0, p.w - S), p.w);
    }
  }

  void pair_rows([[maybe_unused]] const Band& b) const {
#if defined(__AVX512F__)
    using W = Vector<float, kWide>;
    using N = Vector<float, kNarrow>;
    const i64 rest = p.w % 16;
    if (rest == 0 || rest > 8) return pair_band<W>(b, 0, p.w);
    pair_band<W>(b, 0, p.w - rest);
    pair_band<N>(b, p.w - 8, p.w);
#endif
  }

  // Whether what lies beside plane c of image n is x, too.
  bool inner(i64 n, i64 c) const {
    const i64 at = n * from.n + c * from.c;
    return !kMasksSums || (at >= kReach && at + kReach <= (p.n - 1) * from.n + (p.c - 1) * from.c);
  }
  // Whether planes are a band each.
  template <int K>
  bool whole() const {
    if (p.w <= lanes<Vector<float, kNarrow>, float>) return p.h == 7 || p.h == 8;
    return kWide > kNarrow && p.w <= lanes<Vector<float, kWide>, float> && (p.h == 14 || (K < 7 && p.h == 16));
  }
  template <int K>
  void whole_planes(const Band& b) const {
    using W = Vector<float, kWide>;
    using N = Vector<float, kNarrow>;
    if (p.h == 7) return band<K, 7, N, true>(b, 0, p.w);
    if (p.h == 8) return band<K, 8, N, true>(b, 0, p.w);
    if constexpr (kWide > kNarrow) {
      if (p.h == 14) return band<K, 14, W, true>(b, 0, p.w);
      if constexpr (K < 7) band<K, 16, W, true>(b, 0, p.w);
    }
  }

  // Planes [first, last), counted over all images. What the last vector of a row writes too much, the next row or plane
  // covers.
  template <int K>
  void planes(i64 first, i64 last, float* buffer) const {
    const i64 size = p.h * p.w, begin = past ? first : last - 1;  // where output begins to go through the buffer
    const i64 skip = past ? reinterpret_cast<std::uintptr_t>(y + begin * size) % 64 / 4 : 0;
    const bool by_two = K == 7 && pairs;
    const i64 taps = by_two ? kPairTaps : K * K;
    const int tall = !by_two && p.w > lanes<Vector<float, kNarrow>, float> ? tall_band<K>(p.h) : 0;
    Lines out{buffer, y + begin * size - skip, skip, past};
    i64 done = skip;  // in the buffer, before this plane
    for (i64 q = first; q < last;) {
      const i64 n = q / p.c, c = q % p.c;
      Band b{x + n * from.n + c * from.c,
             w + c * taps,
             bias ? bias + c : nullptr,
             y + q * size,
             from.h,
             from.c,
             size,
             p.w,
             1,
             0,
             0};
      const float* const plane = b.x;
      if constexpr (K != 5) {  // rare: for the sake of compile time
        if (q < begin && !by_two && whole<K>() && inner(n, c)) {
          b.planes = smaller(begin - q, p.c - c);
          while (!inner(n, c + b.planes - 1)) --b.planes;
          whole_planes<K>(b);
          q += b.planes;
          continue;
        }
      }
      i64 sevens = sevens_of(p.h);
      for (i64 i = 0; i < p.h;) {
        const int height = tall ? tall : p.h == 7 || sevens-- > 0 ? 7 : 8;
        i = smaller(i, p.h - height);
        if (q >= begin && done + i * p.w >= Lines::kFull) done -= out.flush(done + i * p.w);
        b.x = plane + i * from.h;
        b.y = (q < begin ? y + q * size : buffer + done) + i * p.w;
        b.above = i;
        b.below = p.h - i - height;
        if (by_two) {
          pair_rows(b);
        } else if (tall) {
          if constexpr (tall_band<K>(14) > 0) rows<K, 14>(b);
        } else {
          height == 8 ? rows<K, 8>(b) : rows<K, 7>(b);
        }
        i += height;
      }
      if (q >= begin) done += size;
      ++q;
    }
    out.finish(done);
  }

  void work(i64 kernel, i64 first, i64 last, float* buffer) const {
    if (kernel == 3) return planes<3>(first, last, buffer);
    if (kernel == 7) return planes<7>(first, last, buffer);
    if constexpr (direct_kernel(5, 0)) planes<5>(first, last, buffer);
  }
};

inline i64 widest(const Params& p) {
  i64 k = 0;
  for (i64 m = 0; m < p.num_branches; ++m) k = larger(k, p.branches[m].kernel);
  return k;
}

// Measured: narrow planes lose by it. Bands tile a map, so that beyond each lie three rows or none.
inline bool by_pairs(const Params& p) {
  return kVecBytes == 64 && !p.exact && widest(p) == 7 && p.h % 8 == 0 && p.w > 8;
}

inline bool goes_direct(const Params& p, bool input) {
  const Strides &in = input ? p.y : p.x, &out = input ? p.x : p.y;
  if (p.layout != Layout::nchw || p.stride_h != 1 || p.stride_w != 1 || p.h < 7 || p.w < 4 || p.n * p.c < p.threads ||
      !direct_kernel(widest(p), p.w) || (p.num_branches > 1 && p.combine != Combine::add))
    return false;
  for (i64 m = 0; m < p.num_branches; ++m) {
    const Branch& b = p.branches[m];
    if (b.dilation != 1 || b.in_start != 0 || b.out_start != 0 || b.channels != p.c) return false;
  }
  return in.w == 1 && in.h >= p.w && out.w == 1 && out.h == p.w && out.c == p.h * p.w && out.n == p.c * out.c;
}

inline int direct(const Params& p, const float* x, const float* w, const float* bias, float* y, bool input) {
  const bool as_given = p.num_branches == 1 && !input && !by_pairs(p), fast = merges(p);
  Plan plan;
  if (!as_given && !fast && !make_plan(plan, p, input ? Pass::input : Pass::forward)) return out_of_memory;
  const i64 kernel = widest(p), area = kernel * kernel, planes = p.n * p.c;
  const int threads = team(p);
  const bool pairs = by_pairs(p);
  const i64 taps = pairs ? kPairTaps : area;
  const bool past = planes * p.h * p.w * 4 >= kPastDirect;
  Direct job{p, x, w + p.branches[0].weight_start, bias, y, input ? p.y : p.x, past, pairs};
  const i64 packed = as_given ? 0 : ceil_div(p.c * taps, 16) * 16;
  float* const memory =
      static_cast<float*>(scratch(static_cast<std::size_t>(packed + threads * job.buffer_size()) * sizeof(float)));
  if (!memory) return out_of_memory;
  if (!as_given) job.w = memory;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    if (!as_given) {
#pragma omp for schedule(static)
      for (i64 c = 0; c < p.c; ++c) {
        float kernel_taps[kPairTaps];
        float* const to = pairs ? kernel_taps : memory + c * taps;
        fast ? merge(to, p, w, c, input) : pack(to, plan, p, w, c, input);
#if defined(__AVX512F__)
        if (pairs) pair_taps(memory + c * taps, to);
#endif
      }
    }
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
