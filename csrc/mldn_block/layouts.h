// Maps come and go in either layout; the kernels between have them in planes.
#pragma once
#include "lk/transpose.h"
#include "mldn_block/block.h"

namespace {
namespace mldn {

constexpr i64 kCorner = 16;  // pixels and channels turned round together: whole cache lines of float32

template <class T>
LK_INLINE void turn_corner(T* to, i64 to_pitch, const T* from, i64 from_pitch, i64 m, i64 n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    if (m == kCorner && n == kCorner) {
      Vec<T> v[kCorner];
#pragma GCC unroll 16
      for (int i = 0; i < kCorner; ++i) v[i] = vload(from + i * from_pitch);
      transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < kCorner; ++i) vstore(to + i * to_pitch, v[i]);
      return;
    }
  }
#endif
  rsdc::transpose(to, to_pitch, from, from_pitch, m, n);
}

// to[j * to_pitch + i] = from[i * from_pitch + j] for i < m, j < n. Lines are read in order, of which the processor
// fetches the next by itself, and written whole wherever they are, so they are asked for.
template <class T>
void turn(T* to, i64 to_pitch, const T* from, i64 from_pitch, i64 m, i64 n) {
  for (i64 i = 0; i < m; i += kCorner)
    for (i64 j = 0; j < n; j += kCorner) {
      for (i64 r = j + kCorner; r < smaller(j + 2 * kCorner, n); ++r) __builtin_prefetch(to + r * to_pitch + i, 1, 3);
      turn_corner(to + j * to_pitch + i, to_pitch, from + i * from_pitch + j, from_pitch, smaller(kCorner, m - i),
                  smaller(kCorner, n - j));
    }
}

// `channels` planes of an image from a tensor in which pixels are `pixel` apart, or, if that is 0, lie in planes too.
template <class T>
void to_planes(T* to, const T* from, i64 pixel, i64 channels, i64 pixels) {
  if (pixel)
    turn(to, pixels, from, pixel, pixels, channels);
  else
    __builtin_memcpy(to, from, static_cast<std::size_t>(channels * pixels) * sizeof(T));
}

}  // namespace mldn
}  // namespace
