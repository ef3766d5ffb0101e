// Index arithmetic of the CUDA kernels: offsets in 64 bits, divisions in 32 where that is enough.
#pragma once
#include "lk/simt.cuh"

namespace lk::simt {

// index = index / size, returning what remains; in 32 bits where that is enough.
LK_DEVICE int take(i64& index, int size) {
  if (index >> 32) {
    const int rest = static_cast<int>(index % size);
    index /= size;
    return rest;
  }
  const u32 all = static_cast<u32>(index);
  const u32 quotient = all / static_cast<u32>(size);
  index = quotient;
  return static_cast<int>(all - quotient * static_cast<u32>(size));
}

// Division by a small number without dividing: exact while index * (by - 1) < 2^16 and index < 2^16.
struct Divider {
  u32 factor;
  static Divider of(int by) { return {static_cast<u32>((65536 + by - 1) / by)}; }
  LK_DEVICE int operator()(int index) const { return static_cast<int>((static_cast<u32>(index) * factor) >> 16); }
};

struct Place {
  int n, c, i, j;
};

// The index-th element of [n, c, high, wide], the memory's innermost dimension first.
LK_DEVICE Place place(bool channels_last, i64 index, int c, int high, int wide) {
  Place at;
  if (channels_last) {
    at.c = take(index, c);
    at.j = take(index, wide);
    at.i = take(index, high);
  } else {
    at.j = take(index, wide);
    at.i = take(index, high);
    at.c = take(index, c);
  }
  at.n = static_cast<int>(index);
  return at;
}

inline i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }

// Of `count` things, how many each block takes if there are to be about so many blocks, at most `most`.
inline i64 share(i64 count, i64 blocks, i64 most) {
  return ceil_div(count, blocks < 1 ? 1 : blocks > most ? most : blocks);
}

}  // namespace lk::simt
