// What the CUDA kernels of this operator share: a call by value, and numbers of one channel at consecutive pixels,
// which are what is read, scaled, activated and put into a tile at once.
#pragma once
#include <type_traits>

#include "condensed_conv2d/cuda.h"
#include "lk/simt_index.cuh"

namespace lk::condensed_conv2d::cuda {

using namespace lk::simt;

// Of a tensor: elements from one image, pixel and channel to the next.
struct Steps {
  i64 image, pixel, channel;
  bool vector;  // 16 bytes of a channel can be read or written at once
};

// Params as a kernel's argument.
struct Problem {
  i64 pixels;  // of all images
  int area, c, groups, picked, each;
  bool last, hard;  // channels_last, hard-swish
  Steps x, y;
  const i64* index;

  // The channel that an entry of the index names, or -1: nothing is read for what is none.
  LK_DEVICE int channel(int entry) const {
    const i64 q = index[entry];
    return q >= 0 && q < c ? static_cast<int>(q) : -1;
  }
};

inline Problem problem_of(const Params& p) {
  Problem q{};
  auto narrow = [](i64 v) { return static_cast<int>(v); };
  q.pixels = p.n * p.pixels;
  q.area = narrow(p.pixels);
  q.c = narrow(p.c);
  q.groups = narrow(p.groups);
  q.picked = narrow(p.picked);
  q.each = narrow(p.co / p.groups);
  q.last = p.layout == Layout::nhwc;
  q.hard = p.act == Act::hardswish;
  q.x = {p.image, p.pixel, p.channel, false};
  q.y = q.last ? Steps{p.co * p.pixels, p.co, 1, false} : Steps{p.co * p.pixels, 1, p.pixels, false};
  q.index = p.index;
  return q;
}

// Whether chunks of pixels lie side by side, none over two images, at 16-byte aligned addresses.
inline bool aligned(const Problem& p, const Steps& s, const void* at, int size) {
  const int copy = 16 / size;
  const i64 steps = p.area | s.image | s.channel;
  return s.pixel == 1 && steps % copy == 0 && reinterpret_cast<std::uintptr_t>(at) % 16 == 0;
}

template <class A>
LK_DEVICE A activate(A z, bool hard) {
  if (!hard) return z < 0 ? A(0) : z;  // a NaN stays
  const A up = z + 3, low = up < 0 ? A(0) : up;
  return z * ((low > 6 ? A(6) : low) * (A(1) / 6));
}

// The numbers of a channel at consecutive pixels: 16 bytes, in words that a register or two hold.
template <class T>
struct Pixels {
  using E = typename Stored<T>::type;
  static constexpr int kCopy = 16 / sizeof(E);
  static constexpr bool kHalf = sizeof(E) == 2;

  struct alignas(16) Chunk {
    using Word = std::conditional_t<kHalf, u32, E>;
    Word word[16 / sizeof(Word)];

    LK_DEVICE E bare(int e) const {
      if constexpr (kHalf)
        return static_cast<u16>(word[e / 2] >> (e % 2 * 16));
      else
        return word[e];
    }
    LK_DEVICE Acc<T> get(int e) const {
      if constexpr (kHalf)
        return to_acc(T{bare(e)});
      else
        return word[e];
    }
    // In the order of e, of a chunk of zeros.
    LK_DEVICE void put_bare(int e, E v) {
      if constexpr (kHalf)
        word[e / 2] |= static_cast<u32>(v) << (e % 2 * 16);
      else
        word[e] = v;
    }
    LK_DEVICE void put(int e, Acc<T> v) {
      if constexpr (kHalf)
        put_bare(e, from_acc<T>(v).bits);
      else
        word[e] = v;
    }
  };

  // Zeros where `places` has no pixel (-1) and where the channel is none.
  static LK_DEVICE Chunk load(const E* channel, const i64* places, bool live, bool vector) {
    Chunk found{};
    if (!live) return found;
    if (vector) {
      if (places[0] >= 0) found = *reinterpret_cast<const Chunk*>(channel + places[0]);
      return found;
    }
    LK_UNROLL for (int e = 0; e < kCopy; ++e) {
      const i64 at = places[e];
      if (at >= 0) found.put_bare(e, channel[at]);
    }
    return found;
  }

  static LK_DEVICE void store(const Chunk& given, E* channel, const i64* places, bool vector) {
    if (vector) {
      if (places[0] >= 0) *reinterpret_cast<Chunk*>(channel + places[0]) = given;
      return;
    }
    LK_UNROLL for (int e = 0; e < kCopy; ++e) {
      if (places[e] >= 0) channel[places[e]] = given.bare(e);
    }
  }
};

// 16 bytes of sums.
template <class A>
struct alignas(16) Four {
  static constexpr int kCount = 16 / sizeof(A);
  A v[kCount];
};

// Where a pixel of all images lies; -1: there is none.
LK_DEVICE i64 place_of(const Problem& p, const Steps& s, i64 pixel) {
  if (pixel >= p.pixels) return -1;
  const int inside = take(pixel, p.area);
  return pixel * s.image + inside * s.pixel;
}

// What a block of a product has: a tile of pixels, and groups from `first` to before `last`.
struct Share {
  i64 tile;
  int first, last;
};

// A block's share; and where its pixels lie in x, then in y, which are there behind a barrier.
LK_DEVICE Share share_of(const Problem& p, int splits, int together, int pixels, int threads, i64* places) {
  i64 tile = block_x();
  const int first = take(tile, splits) * together, after = first + together;
  for (int m = tid(); m < pixels; m += threads) {
    places[m] = place_of(p, p.x, tile * pixels + m);
    places[pixels + m] = place_of(p, p.y, tile * pixels + m);
  }
  return {tile, first, after < p.groups ? after : p.groups};
}

}  // namespace lk::condensed_conv2d::cuda
