// What the CUDA kernels of this operator share: a call by value, what is packed for it, and the loader, which reads
// channels of a path, brings them through their norm and ReLU and leaves them where a warp multiplies them.
#pragma once
#include "condensed_conv2d/cuda_args.cuh"
#include "mldn_block/cuda_plan.h"

namespace lk::mldn_block::cuda {

using condensed_conv2d::cuda::Four;
using condensed_conv2d::cuda::Pixels;

template <class A>
struct alignas(2 * sizeof(A)) Pair {
  A scale, shift;
  LK_DEVICE A normed(A u) const { return u * scale + shift; }
  LK_DEVICE A operator()(A u) const {
    const A z = normed(u);
    return z < 0 ? A(0) : z;  // a NaN stays
  }
};

template <class T>
struct PackArgs {
  using E = typename Stored<T>::type;
  using A = Acc<T>;
  Shape s;
  Packed packed;
  Lists second;
  double eps;
  const E *weight1, *weight3;
  const A *affine1, *affine2, *running1, *running2;
  const i64 *cells, *index;
  unsigned char* to;
};

template <class T>
struct InferArgs {
  using E = typename Stored<T>::type;
  using A = Acc<T>;
  Shape s;
  Packed packed;
  Lists second;
  Room room;
  int layer, after;  // the layers from this one on and before that one
  i64 image, channel, pixel;
  bool vector;  // 16 bytes of y can be read at once
  const unsigned char* packs;
  const E* bias;
  const i64* index;
  E* y;
};

// Where a warp reads a path's channels: at a pixel of the image and on.
template <class E>
struct Source {
  const E* at;
  int step;    // from one channel to the next, or, of channels last, from one pixel to the next
  int pixels;  // so many are there
  bool vector;
};

// A step of the first convolution's left operand: `depth` inputs of `pixels` pixels, as [input][pixel], or, of pixels
// channels last (kLast) on tensor cores, [pixel][input].
template <class T, bool kLast>
struct Stage : Pixels<T> {
  using F = Pixels<T>;
  using A = Acc<T>;
  using E = typename F::E;
  using F::kCopy;
  using Chunk = typename F::Chunk;
  static constexpr Forms kForms = forms_of(sizeof(E));
  static constexpr bool kTensor = kForms.tensor;
  static constexpr int kPixels = kForms.pixels, kDepth = kForms.depth, kUnits = kPixels * kDepth / kCopy / kWarp;
  static constexpr int kPitch = !kTensor ? kPixels + kCopy : kLast ? kDepth : kPixels;
  static_assert(kUnits * kWarp * kCopy == kPixels * kDepth);

  // Where a chunk of a row lies; on tensor cores so that rows of a matrix are in different banks.
  static LK_DEVICE int at(int row, int chunk) {
    constexpr int kAcross = kPitch / kCopy;
    if constexpr (kTensor)
      return row * kPitch + (chunk ^ row / (8 / kAcross) % kAcross) * kCopy;
    else
      return row * kPitch + chunk * kCopy;
  }

  struct Item {
    int input, pixel;
  };
  // The i-th chunk of a lane. Of channels last, a lane's chunks are the same inputs of several pixels.
  static LK_DEVICE Item item(int i) {
    const int number = tid() % kWarp + i * kWarp;
    constexpr int kAcross = kPixels / kCopy, kDeep = kDepth / kCopy;
    static_assert(kWarp % kDeep == 0);
    if constexpr (kLast) return {number % kDeep * kCopy, number / kDeep};
    return {number / kAcross, number % kAcross * kCopy};
  }

  // A channel of the path that the index names, or one that is read as zeros.
  static LK_DEVICE int channel(const i64* index, int input, int depth, int width) {
    if (input >= depth) return -1;
    if (!index) return input;
    const i64 q = index[input];
    return q >= 0 && q < width ? static_cast<int>(q) : -1;
  }

  // The numbers of a chunk one further, and one before them.
  static LK_DEVICE void push(Chunk& c, E v) {
    constexpr int kWords = 16 / sizeof(typename Chunk::Word);
    LK_UNROLL for (int w = kWords - 1; w > 0; --w) {
      if constexpr (F::kHalf)
        c.word[w] = c.word[w] << 16 | c.word[w - 1] >> 16;
      else
        c.word[w] = c.word[w - 1];
    }
    if constexpr (F::kHalf)
      c.word[0] = c.word[0] << 16 | v;
    else
      c.word[0] = v;
  }

  // Zeros behind the first `count` numbers: channels that are not this layer's.
  static LK_DEVICE void trim(Chunk& c, int count) {
    constexpr int kEach = F::kHalf ? 2 : 1;
    LK_UNROLL for (int w = 0; w < kCopy / kEach; ++w) {
      if (w * kEach >= count) c.word[w] = 0;
      if constexpr (F::kHalf) c.word[w] &= w * kEach + 1 == count ? 0xffffu : ~0u;
    }
  }

  struct Loader {
    Chunk raw[kUnits];

    // Inputs from `input` on of `depth`, at pixels from `pixel` on.
    LK_DEVICE void load(const Source<E>& from, const i64* index, int width, int depth, int input, int pixel) {
      LK_UNROLL for (auto& one : raw) one = Chunk{};
      if (!kLast && from.vector) {
        LK_UNROLL for (int i = 0; i < kUnits; ++i) {
          const Item mine = item(i);
          const int q = channel(index, input + mine.input, depth, width), m = pixel + mine.pixel;
          if (m < from.pixels && q >= 0)
            raw[i] = *reinterpret_cast<const Chunk*>(from.at + m + static_cast<i64>(q) * from.step);
        }
      } else if (kLast && from.vector && !index) {
        LK_UNROLL for (int i = 0; i < kUnits; ++i) {
          const Item mine = item(i);
          const int k = input + mine.input, m = pixel + mine.pixel;
          if (m < from.pixels && k < depth)
            raw[i] = *reinterpret_cast<const Chunk*>(from.at + k + static_cast<i64>(m) * from.step);
        }
      } else {
        LK_ROLLED for (int e = kCopy - 1; e >= 0; --e) {
          LK_UNROLL for (int i = 0; i < kUnits; ++i) {
            const Item mine = item(i);
            const int k = input + mine.input + (kLast ? e : 0), m = pixel + mine.pixel + (kLast ? 0 : e);
            const int q = channel(index, k, depth, width);
            const bool is = q >= 0 && m < from.pixels;
            push(raw[i], is ? from.at[static_cast<i64>(kLast ? m : q) * from.step + (kLast ? q : m)] : E(0));
          }
        }
      }
    }

    // What was read of `left` inputs.
    LK_DEVICE void store(const Pair<A>* norm, int left, E* stage) {
      constexpr bool kPairs = kTensor && !kLast;  // both would be too many registers
      Chunk made[kUnits] = {};
      LK_UNROLL for (int e = 0; e < kCopy; e += kPairs ? 2 : 1) {
        LK_UNROLL for (int i = 0; i < kUnits; ++i) {
          const int first = item(i).input;
          if (kLast && e == 0 && first + kCopy > left) trim(raw[i], left - first);
          if constexpr (kPairs)
            made[i].word[e / 2] =
                pack_positive<T>(norm[first].normed(raw[i].get(e)), norm[first].normed(raw[i].get(e + 1)));
          else
            made[i].put(e, norm[first + kLast * e](raw[i].get(e)));
        }
      }
      LK_UNROLL for (int i = 0; i < kUnits; ++i) {
        const Item mine = item(i);
        if constexpr (kTensor || !kLast) {
          const int row = kLast ? mine.pixel : mine.input, chunk = (kLast ? mine.input : mine.pixel) / kCopy;
          *reinterpret_cast<Chunk*>(stage + at(row, chunk)) = made[i];
        } else {
          LK_UNROLL for (int e = 0; e < kCopy; ++e) stage[(mine.input + e) * kPitch + mine.pixel] = made[i].bare(e);
        }
      }
    }
  };
};

}  // namespace lk::mldn_block::cuda
