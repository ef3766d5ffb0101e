// Two bf16 in the place of one float: processors with AVX512-BF16 multiply and add both in one instruction.
#pragma once
#include "rsdc2d/lines.h"

namespace {
namespace rsdc {

#if defined(__AVX512F__)
template <class T>
constexpr bool kPairs = __is_same(T, bf16);
inline bool has_pairs() {
  static const bool yes = __builtin_cpu_supports("avx512bf16");
  return yes;
}
#else
template <class T>
constexpr bool kPairs = false;
inline bool has_pairs() { return false; }
#endif

// a * b + c; with Pairs, the sum of the products of both halves, and c.
template <bool Pairs, class V>
LK_INLINE V multiply_add(V a, V b, V c) {
#if defined(__AVX512F__)
  if constexpr (Pairs) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
  }
#endif
  return vfma(a, b, c);
}

constexpr i64 paired(bool pairs, i64 n) { return pairs ? (n + 1) / 2 : n; }

// Elements of two lines side by side, those of the first in the lower halves; without a second line, zeros.
LK_INLINE void read_pairs(float* to, const bf16* first, const bf16* second, i64 step, i64 n) {
  i64 i = 0;
#if defined(__AVX512F__)
  if (step == 1)
    for (; i < n; i += 16) {
      const __mmask16 m = static_cast<__mmask16>(n - i < 16 ? (1u << (n - i)) - 1 : 0xffffu);
      __m512i v = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, first + i));
      if (second)
        v = _mm512_or_si512(v, _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, second + i)), 16));
      _mm512_mask_storeu_epi32(to + i, m, v);
    }
#endif
  for (; i < n; ++i) {
    const std::uint16_t both[2] = {first[i * step].bits, second ? second[i * step].bits : std::uint16_t(0)};
    __builtin_memcpy(to + i, both, sizeof both);
  }
}

// A line of n pixels of c channels, channels together, to one line of pixels a pair of channels. `part` holds 16
// pixels' worth.
inline void pixels_to_pairs(float* to, i64 to_pitch, const bf16* from, i64 pixel, i64 n, i64 c, float* part) {
  const i64 pairs = paired(true, c);
  for (i64 j = 0; j < n; j += 16) {
    const i64 m = n - j < 16 ? n - j : 16;
    for (i64 k = 0; k < m; ++k) {
      if (c % 2) part[k * pairs + pairs - 1] = 0;
      __builtin_memcpy(part + k * pairs, from + (j + k) * pixel, static_cast<std::size_t>(c) * sizeof(bf16));
    }
    transpose(to + j, to_pitch, part, pairs, m, pairs);
  }
}

}  // namespace rsdc
}  // namespace
