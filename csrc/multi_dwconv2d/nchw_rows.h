// Rows of NCHW tensors: vectors of two widths, conversion between elements and accumulators, staging of planes.
#pragma once
#include "lk/vec.h"

namespace {
namespace nchw {

using lk::i64;

constexpr i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }
constexpr i64 larger(i64 a, i64 b) { return a > b ? a : b; }
constexpr i64 smaller(i64 a, i64 b) { return a < b ? a : b; }

#define LK_HOT inline __attribute__((always_inline))
// A loaded vector that feeds several multiply-adds must stay in a register: left alone, the compiler folds the load
// into each of them, and an unaligned 64-byte load costs twice as much as the multiply-add it serves.
#if defined(__x86_64__) && defined(__AVX512F__)
#define LK_IN_REGISTER(v) asm("" : "+v"(v))
#elif defined(__x86_64__)
#define LK_IN_REGISTER(v) asm("" : "+x"(v))
#else
#define LK_IN_REGISTER(v) static_cast<void>(v)
#endif

// Narrow maps fill half of a 64-byte vector; narrower instruction sets have one width.
constexpr int kWide = kVecBytes;
constexpr int kNarrow = kVecBytes == 64 ? 32 : kVecBytes;

template <class A, int Bytes>
struct VectorOf {
  typedef A type __attribute__((vector_size(Bytes)));
};
template <class A, int Bytes>
using Vector = typename VectorOf<A, Bytes>::type;
template <class V, class A>
constexpr int lanes = static_cast<int>(sizeof(V) / sizeof(A));

template <class V, class A>
LK_HOT V get(const A* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class A>
LK_HOT void put(A* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// Not V{} + s: adding zero is not nothing to a negative zero, so it would be done.
template <class V, class A>
LK_HOT V all(A s) {
  return s - V{};
}

// The first n lanes; no other element is written.
template <class V, class A>
LK_HOT void put_some(A* p, V v, int n) {
#if defined(__AVX512F__)
  const unsigned m = (1u << n) - 1;
  if constexpr (sizeof(V) == 64 && sizeof(A) == 4)
    return _mm512_mask_storeu_ps(p, static_cast<__mmask16>(m), (__m512)v);
  if constexpr (sizeof(V) == 64 && sizeof(A) == 8)
    return _mm512_mask_storeu_pd(p, static_cast<__mmask8>(m), (__m512d)v);
  if constexpr (sizeof(V) == 32 && sizeof(A) == 4) return _mm256_mask_storeu_ps(p, static_cast<__mmask8>(m), (__m256)v);
  if constexpr (sizeof(V) == 32 && sizeof(A) == 8)
    return _mm256_mask_storeu_pd(p, static_cast<__mmask8>(m), (__m256d)v);
#else
  A t[lanes<V, A>];
  __builtin_memcpy(t, &v, sizeof v);
  const A* s = t;
#pragma GCC unroll 4
  for (int piece = lanes<V, A>; piece; piece /= 2)
    if (n & piece) {
      __builtin_memcpy(p, s, static_cast<std::size_t>(piece) * sizeof(A));
      p += piece;
      s += piece;
    }
#endif
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // inside the compiler's own intrinsics

// N neighbouring elements as accumulators and back.
template <int N, class T>
LK_HOT Vector<Acc<T>, N* static_cast<int>(sizeof(Acc<T>))> widen(const T* p) {
  using A = Acc<T>;
  using V = Vector<A, N* static_cast<int>(sizeof(A))>;
  if constexpr (sizeof(T) == sizeof(A)) {
    return get<V>(reinterpret_cast<const A*>(p));
  } else if constexpr (__is_same(T, bf16)) {
    using H = Vector<std::uint16_t, N * 2>;
    using U = Vector<std::uint32_t, N * 4>;
    H h;
    __builtin_memcpy(&h, p, sizeof h);
    return (V)(__builtin_convertvector(h, U) << 16);
  } else {
#if defined(__AVX512F__)
    if constexpr (N == 16) return (V)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#endif
#if defined(__F16C__)
    if constexpr (N == 8) return (V)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    if constexpr (N == 4) return (V)_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#endif
    V v{};
    for (int i = 0; i < N; ++i) v[i] = to_acc(p[i]);
    return v;
  }
}

template <int N, class T, class V>
LK_HOT void narrow(T* p, V v) {
  if constexpr (sizeof(T) == sizeof(Acc<T>)) {
    put(p, v);
  } else if constexpr (__is_same(T, bf16)) {
    using H = Vector<std::uint16_t, N * 2>;
    using U = Vector<std::uint32_t, N * 4>;
    const U u = (U)v;
    const U rounded = u + 0x7fffu + ((u >> 16) & 1u);
    const U nan = (U)(v != v);
    const H h = __builtin_convertvector(((rounded & ~nan) | ((u | 0x400000u) & nan)) >> 16, H);
    __builtin_memcpy(p, &h, sizeof h);
  } else {
#if defined(__AVX512F__)
    if constexpr (N == 16)
      return _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#endif
#if defined(__F16C__)
    if constexpr (N == 8)
      return _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
    if constexpr (N == 4)
      return _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_cvtps_ph((__m128)v, _MM_FROUND_TO_NEAREST_INT));
#endif
    for (int i = 0; i < N; ++i) p[i] = from_acc<T>(v[i]);
  }
}

#pragma GCC diagnostic pop

// The cache lines of these rows will be wanted in the second-level cache.
template <class T>
void touch_rows(const T* p, i64 rows, i64 row, i64 n) {
  constexpr i64 line = 64 / static_cast<i64>(sizeof(T));
  if (row == n) {
    n *= rows;
    rows = 1;
  }
  for (i64 i = 0; i < rows; ++i, p += row)
    for (i64 j = 0; j < n; j += line) __builtin_prefetch(p + j, 0, 2);
}

// Rows of n elements, n >= N, in steps of N; the last step moves back to end with the row.
template <int N, class T>
void read_by(Acc<T>* dst, i64 pitch, const T* src, i64 row, i64 rows, i64 n) {
  for (; rows > 0; --rows, dst += pitch, src += row) {
    for (i64 i = 0; i + N < n; i += N) put(dst + i, widen<N>(src + i));
    put(dst + n - N, widen<N>(src + n - N));
  }
}
template <int N, class T>
void write_by(T* dst, i64 row, const Acc<T>* src, i64 pitch, i64 rows, i64 n) {
  using V = Vector<Acc<T>, N* static_cast<int>(sizeof(Acc<T>))>;
  for (; rows > 0; --rows, dst += row, src += pitch) {
    for (i64 i = 0; i + N < n; i += N) narrow<N>(dst + i, get<V>(src + i));
    narrow<N>(dst + n - N, get<V>(src + n - N));
  }
}

// Rows of at least one, half, a quarter of a vector go by such pieces, shorter ones by elements.
template <class T>
void read_rows(Acc<T>* dst, i64 pitch, const T* src, i64 row, i64 step, i64 rows, i64 n) {
  constexpr int L = kLanes<Acc<T>>, M = L > 8 ? 8 : L, S = L > 4 ? 4 : L;
  if (step == 1 && n >= L) return read_by<L>(dst, pitch, src, row, rows, n);
  if (step == 1 && n >= M) return read_by<M>(dst, pitch, src, row, rows, n);
  if (step == 1 && n >= S) return read_by<S>(dst, pitch, src, row, rows, n);
  for (; rows > 0; --rows, dst += pitch, src += row)
    for (i64 i = 0; i < n; ++i) dst[i] = to_acc(src[i * step]);
}

template <class T>
void write_rows(T* dst, i64 row, i64 step, const Acc<T>* src, i64 pitch, i64 rows, i64 n) {
  constexpr int L = kLanes<Acc<T>>, M = L > 8 ? 8 : L, S = L > 4 ? 4 : L;
  if (step == 1 && n >= L) return write_by<L>(dst, row, src, pitch, rows, n);
  if (step == 1 && n >= M) return write_by<M>(dst, row, src, pitch, rows, n);
  if (step == 1 && n >= S) return write_by<S>(dst, row, src, pitch, rows, n);
  for (; rows > 0; --rows, dst += row, src += pitch)
    for (i64 i = 0; i < n; ++i) dst[i * step] = from_acc<T>(src[i]);
}

// n elements past the caches; whole lines, dst on a line.
template <class T>
void stream_out(T* dst, const Acc<T>* src, i64 n) {
  for (i64 i = 0; i < n; i += kLanes<Acc<T>>) vstream(dst + i, get<Vec<Acc<T>>>(src + i));
}

// The part of an output map that one thread works on.
struct Region {
  i64 i0, i1, j0, j1;
};

// How a map lies in scratch: row i, column j of a region at origin + (i - i0) * pitch + (j - j0). Rows begin on a
// cache line; the zeros to the right of a row are those to the left of the next one.
struct Frame {
  i64 top, bottom, left, right, pitch, origin, size;
  bool zeros;  // regions are as wide as the map: what surrounds the columns stays zero
};

template <class A>
void clear(A* p, i64 n) {
  __builtin_memset(static_cast<void*>(p), 0, static_cast<std::size_t>(n) * sizeof(A));
}

// Rows i0 - top to i1 + bottom of a map of h x w elements, zeros outside of it. The slot held zeros or such a map.
template <class T>
void stage(Acc<T>* slot, const Frame& f, const Region& r, const T* src, i64 row, i64 step, i64 h, i64 w) {
  if (!f.zeros) clear(slot, f.size);
  const i64 j0 = larger(0, r.j0 - f.left), n = smaller(w, r.j1 + f.right) - j0;
  const i64 i0 = larger(0, r.i0 - f.top), i1 = smaller(h, r.i1 + f.bottom);
  if (n <= 0) return;
  Acc<T>* const dst = slot + f.origin - r.i0 * f.pitch + (j0 - r.j0);
  if (f.zeros && (r.i0 > 0 || r.i1 < h))  // rows beyond the map may hold those of another region
    for (i64 i = r.i0 - f.top; i < r.i1 + f.bottom; ++i)
      if (i < i0 || i >= i1) clear(dst + i * f.pitch, n);
  read_rows(dst + i0 * f.pitch, f.pitch, src + i0 * row + j0 * step, row, step, i1 - i0, n);
}

// Adds a further map to a staged one.
template <class T>
void stage_more(Acc<T>* slot, const Frame& f, const Region& r, const T* src, i64 row, i64 step, i64 h, i64 w) {
  const i64 i0 = larger(0, r.i0 - f.top), i1 = smaller(h, r.i1 + f.bottom);
  const i64 j0 = larger(0, r.j0 - f.left), j1 = smaller(w, r.j1 + f.right);
  constexpr int L = kLanes<Acc<T>>;
  for (i64 i = i0; i < i1; ++i) {
    Acc<T>* dst = slot + f.origin + (i - r.i0) * f.pitch - r.j0;
    i64 j = j0;
    if (step == 1)
      for (; j + L <= j1; j += L) put(dst + j, get<Vec<Acc<T>>>(dst + j) + widen<L>(src + i * row + j));
    for (; j < j1; ++j) dst[j] += to_acc(src[i * row + j * step]);
  }
}

}  // namespace nchw
}  // namespace
