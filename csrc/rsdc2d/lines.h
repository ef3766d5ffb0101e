// Lines of elements to and from accumulators, and small transposes.
#pragma once
#include "lk/transpose.h"
#include "rsdc2d/plan.h"

namespace {
namespace rsdc {

// One element in every lane. Not splat(): adding zero is not nothing to a negative zero, so it would be done.
template <class A>
LK_INLINE Vec<A> every(A v) {
  return v - Vec<A>{};
}

// Half a cache line at most: every tap loads inputs of its own at any address, and a load that lies in two lines costs
// two.
constexpr int kSlimBytes = kVecBytes < 32 ? kVecBytes : 32;
template <class A>
struct SlimOf {
  typedef A type __attribute__((vector_size(kSlimBytes)));
};
template <class A>
using Slim = typename SlimOf<A>::type;
// What one output or, sharing what they load, several are computed in.
template <class A, int R>
constexpr auto run_vector() {
  if constexpr (R == 1)
    return Slim<A>{};
  else
    return Vec<A>{};
}

template <class A>
void clear(A* p, i64 n) {
  __builtin_memset(static_cast<void*>(p), 0, static_cast<std::size_t>(n) * sizeof(A));
}

template <class T>
LK_INLINE void read_line(Acc<T>* to, const T* from, i64 step, i64 n) {
  constexpr int V = kLanes<Acc<T>>;
  i64 i = 0;
  if (step == 1) {
    for (; i + V <= n; i += V) vstore(to + i, vload(from + i));
    if (i < n && n >= V) {
      vstore(to + n - V, vload(from + n - V));
      return;
    }
    if (i < n) return vstore(to, vload(from, static_cast<int>(n)), static_cast<int>(n));
  }
  for (; i < n; ++i) to[i] = to_acc(from[i * step]);
}

template <class T>
LK_INLINE void write_line(T* to, i64 step, const Acc<T>* from, i64 n) {
  constexpr int V = kLanes<Acc<T>>;
  i64 i = 0;
  if (step == 1) {
    for (; i + V <= n; i += V) vstore(to + i, vload(from + i));
    if (i < n && n >= V) {
      vstore(to + n - V, vload(from + n - V));
      return;
    }
    if (i < n) return vstore(to, vload(from, static_cast<int>(n)), static_cast<int>(n));
  }
  for (; i < n; ++i) to[i * step] = from_acc<T>(from[i]);
}

// n, whole vectors, past the caches.
template <class A>
LK_INLINE void write_past(A* to, const A* from, i64 n) {
  for (i64 i = 0; i < n; i += kLanes<A>) vstream(to + i, vload(from + i));
}

typedef float Four __attribute__((vector_size(16)));

LK_INLINE void transpose_four(float* to, i64 to_pitch, const float* from, i64 from_pitch) {
  Four r[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) __builtin_memcpy(&r[i], from + i * from_pitch, sizeof(Four));
  const Four a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5), b = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
  const Four c = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7), d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  r[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
  r[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  r[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
  r[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) __builtin_memcpy(to + i * to_pitch, &r[i], sizeof(Four));
}

// to[j * to_pitch + i] = from[i * from_pitch + j] for i, j < kEdge; Past: past the caches, `to` and its pitch being
// multiples of a block's edge.
#if defined(__AVX2__)
constexpr i64 kEdge = 8;
template <bool Past>
LK_INLINE void transpose_block(float* to, i64 to_pitch, const float* from, i64 from_pitch) {
  __m256 v[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) v[i] = _mm256_loadu_ps(from + i * from_pitch);
  transpose_eight(v);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    if (Past)
      _mm256_stream_ps(to + i * to_pitch, v[i]);
    else
      _mm256_storeu_ps(to + i * to_pitch, v[i]);
}
#else
constexpr i64 kEdge = 4;
template <bool Past>
LK_INLINE void transpose_block(float* to, i64 to_pitch, const float* from, i64 from_pitch) {
  transpose_four(to, to_pitch, from, from_pitch);
}
#endif

// What blocks leave of a transpose.
template <class A>
void transpose_rest(A* to, i64 to_pitch, const A* from, i64 from_pitch, i64 m, i64 n) {
  i64 i = 0;
  if constexpr (sizeof(A) == 4)
    for (; i + 4 <= m; i += 4) {
      i64 j = i < m / kEdge * kEdge ? n / kEdge * kEdge : 0;
      for (; j + 4 <= n; j += 4) transpose_four(to + j * to_pitch + i, to_pitch, from + i * from_pitch + j, from_pitch);
      for (; j < n; ++j)
        for (int k = 0; k < 4; ++k) to[j * to_pitch + i + k] = from[(i + k) * from_pitch + j];
    }
  for (; i < m; ++i)
    for (i64 j = 0; j < n; ++j) to[j * to_pitch + i] = from[i * from_pitch + j];
}

// to[j * to_pitch + i] = from[i * from_pitch + j] for i < m, j < n; read in order.
template <class A>
void transpose(A* to, i64 to_pitch, const A* from, i64 from_pitch, i64 m, i64 n) {
  if constexpr (sizeof(A) == 4)
    for (i64 i = 0; i + kEdge <= m; i += kEdge)
      for (i64 j = 0; j + kEdge <= n; j += kEdge)
        transpose_block<false>(to + j * to_pitch + i, to_pitch, from + i * from_pitch + j, from_pitch);
  transpose_rest(to, to_pitch, from, from_pitch, m, n);
}

// The same, written in order: for lines of `to` that are far away.
template <bool Past, class A>
void transpose_out(A* to, i64 to_pitch, const A* from, i64 from_pitch, i64 m, i64 n) {
  if constexpr (sizeof(A) == 4)
    for (i64 j = 0; j + kEdge <= n; j += kEdge)
      for (i64 i = 0; i + kEdge <= m; i += kEdge)
        transpose_block<Past>(to + j * to_pitch + i, to_pitch, from + i * from_pitch + j, from_pitch);
  transpose_rest(to, to_pitch, from, from_pitch, m, n);
}

// Asks for the cache lines of n pixels of c channels. Pixels of which a part is read are not fetched ahead by
// themselves.
template <int Write, class T>
LK_INLINE void touch_pixels(const T* p, i64 pixel, i64 n, i64 c) {
  constexpr i64 line = 64 / static_cast<i64>(sizeof(T));
  for (; n > 0; --n, p += pixel)
    for (i64 i = 0; i < c; i += line) __builtin_prefetch(p + i, Write, 2);
}

// Asks for rows [r0, r1) of n elements.
template <class T>
LK_INLINE void touch_rows(const T* p, i64 row, i64 r0, i64 r1, i64 n) {
  for (i64 r = r0; r < r1; ++r)
    for (i64 i = 0; i < n; i += 64 / static_cast<i64>(sizeof(T))) __builtin_prefetch(p + r * row + i, 0, 2);
}

// A line of n pixels of c channels, channels together, to one line of pixels a channel. `part` holds 16 pixels' worth.
template <class T>
void pixels_to_lines(Acc<T>* to, i64 to_pitch, const T* from, i64 pixel, i64 n, i64 c, Acc<T>* part) {
  if constexpr (sizeof(T) == sizeof(Acc<T>)) {
    transpose(to, to_pitch, from, pixel, n, c);
  } else {
    for (i64 j = 0; j < n; j += 16) {
      const i64 m = smaller(16, n - j);
      for (i64 k = 0; k < m; ++k) read_line(part + k * c, from + (j + k) * pixel, 1, c);
      transpose(to + j, to_pitch, part, c, m, c);
    }
  }
}

// The reverse.
template <class T>
void lines_to_pixels(T* to, i64 pixel, const Acc<T>* from, i64 from_pitch, i64 n, i64 c, Acc<T>* part) {
  if constexpr (sizeof(T) == sizeof(Acc<T>)) {
    transpose_out<false>(to, pixel, from, from_pitch, c, n);
  } else {
    for (i64 j = 0; j < n; j += 16) {
      const i64 m = smaller(16, n - j);
      transpose(part, c, from + j, from_pitch, c, m);
      for (i64 k = 0; k < m; ++k) write_line(to + (j + k) * pixel, 1, part + k * c, c);
    }
  }
}

}  // namespace rsdc
}  // namespace
