// Evaluation of a dense block: a band of rows of an image, one layer at a time, or a whole image through all layers
// with its maps in shared memory. The first convolution goes over the band and the rows that the window reaches
// beyond it; its activated outputs stay in shared memory, in a frame of zeros, where the second one reads its cells.
// Warps take tiles of pixels, 16 bit on tensor cores, wider types in registers.
#pragma once
#include "mldn_block/cuda_args.cuh"

namespace lk::mldn_block::cuda {

constexpr u16 kOutside = 0xffff;

// What both forms have in common: places, and the loop over layers.
template <class T, bool kLast>
struct Walk : Stage<T, kLast> {
  using S = Stage<T, kLast>;
  using Args = InferArgs<T>;
  using typename S::A, typename S::E;

  // The parts of shared memory, and what a block of threads works on.
  struct Block {
    i64 image;
    int path, base, pixels, begin, band;  // pixels of the table, from `base` of the image on; those of the band

    LK_DEVICE explicit Block(const Args& a) {
      const Room& r = a.room;
      image = block_x();
      path = take(image, a.s.paths / r.together) * r.together;
      const int row = take(image, r.bands) * r.rows, reach = a.s.reach(), wide = a.s.wide;
      const int after = row + r.rows < a.s.high ? row + r.rows : a.s.high;
      const int first = row > reach ? row - reach : 0, last = after + reach < a.s.high ? after + reach : a.s.high;
      base = first * wide / S::kCopy * S::kCopy;
      pixels = last * wide - base;
      begin = row * wide - base;
      band = (after - row) * wide;
      for (int i = tid(); i < pixels; i += kWarp * kWarps) {
        const int y = (base + i) / wide, x = (base + i) % wide;
        table(a)[i] = y < first ? kOutside : static_cast<u16>((y - row + reach) * (wide + reach) + reach + x);
      }
      for (int i = tid(); i < r.together * r.frame / 16; i += kWarp * kWarps)
        reinterpret_cast<Four<float>*>(frame(a, 0))[i] = Four<float>{};
      if (r.resident) bring_home(a);
    }

    // Those of the maps that are there before the first layer.
    LK_DEVICE void bring_home(const Args& a) const {
      const int all = a.s.pixels();
      for (int p = 0; p < a.room.together; ++p) {
        const E* from = a.y + image * a.image + static_cast<i64>(path + p) * a.s.end() * a.channel;
        for (int item = tid(); item < a.s.first * all; item += kWarp * kWarps) {
          const int c = a.s.last ? item % a.s.first : item / all, i = a.s.last ? item / a.s.first : item % all;
          map(a, p)[c * pitch(a) + i] = from[c * a.channel + i * a.pixel];
        }
      }
    }
    LK_DEVICE static E* map(const Args& a, int p) { return reinterpret_cast<E*>(shared() + p * a.room.home); }
    LK_DEVICE static int pitch(const Args& a) { return up(a.s.pixels(), S::kCopy); }
    LK_DEVICE static E* frame(const Args& a, int p) {
      return reinterpret_cast<E*>(shared() + a.room.together * a.room.home + p * a.room.frame);
    }
    LK_DEVICE static unsigned char* stages(const Args& a) {
      return reinterpret_cast<unsigned char*>(frame(a, a.room.together));
    }
    // This warp's.
    LK_DEVICE static E* stage(const Args& a) { return reinterpret_cast<E*>(stages(a) + tid() / kWarp * a.room.stage); }
    LK_DEVICE static u16* table(const Args& a) { return reinterpret_cast<u16*>(stages(a) + kWarps * a.room.stage); }

    LK_DEVICE Source<E> source(const Args& a, int p) const {
      if (a.room.resident) return {map(a, p), pitch(a), pitch(a), true};
      const E* at = a.y + image * a.image + static_cast<i64>(path + p) * a.s.end() * a.channel + base * a.pixel;
      return {at, static_cast<int>(kLast ? a.pixel : a.channel), a.s.pixels() - base, a.vector};
    }
    LK_DEVICE u16 place(const Args& a, int i) const { return i < pixels ? table(a)[i] : kOutside; }
  };

  // Where a path's list of filters leaves what it makes.
  struct Sink {
    T *y, *home;
    const T* bias;
    i64 channel, pixel;
    int pitch;

    LK_DEVICE Sink(const Args& a, const Block& b, int layer, int p, int filter) {
      const int to = a.s.partner(layer, b.path + p), c = a.s.width(layer) + filter;
      channel = a.channel;
      pixel = a.pixel;
      pitch = Block::pitch(a);
      y = reinterpret_cast<T*>(a.y) + b.image * a.image + (static_cast<i64>(to) * a.s.end() + c) * channel;
      y += (b.base + b.begin) * pixel;
      home =
          a.room.resident && layer + 1 < a.s.layers ? reinterpret_cast<T*>(b.map(a, to - b.path)) + c * pitch : nullptr;
      bias = reinterpret_cast<const T*>(a.bias);
      if (bias) bias += (static_cast<i64>(layer) * a.s.paths + b.path + p) * a.s.kappa + filter;
    }
    // Of filter n of the list, at pixel i of the band.
    LK_DEVICE void put(int n, int i, A value) const {
      if (bias) value += to_acc(bias[n]);
      const T made = from_acc<T>(value);
      y[n * channel + i * pixel] = made;
      if (home) home[n * pitch + i] = made;
    }
  };

  // A piece of work of a warp: a tile of pixels, and some tiles of a list's outputs.
  struct Piece {
    int p, list, pixel, tile, tiles;
    LK_DEVICE Piece(int item, int pixels, int slices, int all, int lists) {
      auto next = [&](int size) {
        const int rest = item % size;
        item /= size;
        return rest;
      };
      pixel = next((pixels + S::kPixels - 1) / S::kPixels) * S::kPixels;
      const int each = (all + slices - 1) / slices;
      tile = next(slices) * each;
      tiles = tile + each < all ? each : all - tile;
      list = next(lists);
      p = item;
    }
    static LK_DEVICE int count(int pixels, int slices, int lists, int paths) {
      return (pixels + S::kPixels - 1) / S::kPixels * slices * lists * paths;
    }
  };

  template <class Form>
  static LK_DEVICE void walk(const Args& a) {
    const Block b(a);
    sync();
    const Room& r = a.room;
    LK_ROLLED for (int layer = a.layer; layer < a.after; ++layer) {
      const int firsts = Piece::count(b.pixels, r.slices1, a.s.parts, r.together);
      LK_ROLLED for (int item = tid() / kWarp; item < firsts; item += kWarps)
          Form::first(a, b, layer, Piece(item, b.pixels, r.slices1, a.packed.tiles1, a.s.parts));
      sync();
      const int seconds = Piece::count(b.band, r.slices3, a.second.lists, r.together);
      LK_ROLLED for (int item = tid() / kWarp; item < seconds; item += kWarps)
          Form::second(a, b, layer, Piece(item, b.band, r.slices3, a.packed.tiles3, a.second.lists));
      sync();
    }
  }

  static LK_DEVICE i64 all(const Args& a, const Block& b, int layer, int p) {
    return static_cast<i64>(layer) * a.s.paths + b.path + p;
  }

  // Goes through a path's inputs of one group: each step is staged, and multiplied as `step` says.
  template <class Step>
  static LK_DEVICE void inputs(const Args& a, const Block& b, int layer, const Piece& own, const Step& step) {
    const Shape& s = a.s;
    const Source<E> from = b.source(a, own.p);
    const int depth = s.depth(layer), width = s.width(layer);
    const i64 norms = all(a, b, layer, own.p) * a.packed.norm1 + own.list * a.packed.deep;
    const Pair<A>* norm = reinterpret_cast<const Pair<A>*>(a.packs) + norms;
    const i64* index = a.index;
    if (index)
      index += (s.start(layer) + static_cast<i64>(b.path + own.p) * width) * s.parts / s.condense + own.list * depth;
    typename S::Loader loader;
    loader.load(from, index, width, depth, 0, own.pixel);
    LK_ROLLED for (int k = 0; k < depth; k += S::kDepth) {
      loader.store(norm + k, depth - k, b.stage(a));
      sync_warp();
      if (k + S::kDepth < depth) loader.load(from, index, width, depth, k + S::kDepth, own.pixel);
      step(k);
      sync_warp();
    }
  }

  static LK_DEVICE const Pair<A>* norms2(const Args& a, const Block& b, int layer, int p) {
    return reinterpret_cast<const Pair<A>*>(a.packs + a.packed.at_norm2) + all(a, b, layer, p) * a.packed.norm2;
  }
  static LK_DEVICE const int* cells(const Args& a, const Block& b, int layer, const Piece& own) {
    const int* at = reinterpret_cast<const int*>(a.packs + a.packed.at_cells);
    return at + all(a, b, layer, own.p) * a.packed.cells + own.list * a.second.cells;
  }
  static LK_DEVICE const E* weights1(const Args& a, const Block& b, int layer, const Piece& own) {
    const E* at =
        reinterpret_cast<const E*>(a.packs + a.packed.at_weight1) + all(a, b, layer, own.p) * a.packed.weight1;
    return at + own.list * (a.packed.weight1 / a.s.parts);
  }
  static LK_DEVICE const E* weights3(const Args& a, const Block& b, int layer, const Piece& own) {
    const E* at =
        reinterpret_cast<const E*>(a.packs + a.packed.at_weight3) + all(a, b, layer, own.p) * a.packed.weight3;
    return at + own.list * (a.packed.weight3 / a.second.lists);
  }
};

// A lane has two pixels of a tile, 16 outputs of the first convolution and four of the second.
template <class T, bool kLast>
struct TileInfer : Walk<T, kLast> {
  static constexpr int kThreads = kWarps * kWarp, kBlocks = sizeof(T) == 8 ? 1 : 2;
  using W = Walk<T, kLast>;
  using S = Stage<T, kLast>;
  using typename W::A, typename W::Args, typename W::Block, typename W::E, typename W::Piece;

  static LK_DEVICE void run(const Args& a) { W::template walk<TileInfer>(a); }

  static LK_DEVICE void first(const Args& a, const Block& b, int layer, const Piece& own) {
    const int lane = tid() % kWarp, wide = S::kForms.tile;
    const E* weight = W::weights1(a, b, layer, own) + static_cast<i64>(own.tile) * a.packed.deep * wide;
    A sums[S::kForms.tile][2] = {};
    W::inputs(a, b, layer, own, [&](int k) {
      LK_ROLLED for (int i = 0; i < S::kDepth; ++i) {
        const E* stage = b.stage(a) + i * S::kPitch + lane;
        const A one = stage[0], two = stage[kWarp];
        LK_UNROLL for (int o = 0; o < S::kForms.tile; o += Four<A>::kCount) {
          const Four<A> w = *reinterpret_cast<const Four<A>*>(weight + (k + i) * wide + o);
          LK_UNROLL for (int e = 0; e < Four<A>::kCount; ++e) {
            sums[o + e][0] += w.v[e] * one;
            sums[o + e][1] += w.v[e] * two;
          }
        }
      }
    });
    const Pair<A>* norm = W::norms2(a, b, layer, own.p);
    LK_UNROLL for (int half = 0; half < 2; ++half) {
      const u16 place = b.place(a, own.pixel + lane + half * kWarp);
      if (place == kOutside) continue;
      LK_UNROLL for (int e = 0; e < S::kForms.tile; ++e) {
        const int n = own.tile * wide + e, o = n * a.s.parts + own.list;
        if (n < a.s.each()) b.frame(a, own.p)[o * a.room.pitch + place] = norm[o](sums[e][half]);
      }
    }
  }

  static LK_DEVICE void second(const Args& a, const Block& b, int layer, const Piece& own) {
    const int lane = tid() % kWarp, pixels = b.band;
    constexpr int kFilters = S::kForms.filters;
    const int* cells = W::cells(a, b, layer, own);
    const E* frame = b.frame(a, own.p) + a.second.from(a.s, own.list, false) * a.room.pitch;
    const E* weight = W::weights3(a, b, layer, own);
    LK_ROLLED for (int tile = own.tile; tile < own.tile + own.tiles; ++tile) {
      const E* w = weight + static_cast<i64>(tile) * a.second.cells * a.second.span * kFilters;
      const int at = own.pixel + lane;
      const E* mine[2];
      LK_UNROLL for (int half = 0; half < 2; ++half) {
        const int i = at + half * kWarp;
        mine[half] = frame + b.table(a)[b.begin + (i < pixels ? i : 0)];
      }
      A sums[kFilters][2] = {};
      LK_ROLLED for (int t = 0; t < a.second.cells; ++t) {
        const int cell = cells[t];
        LK_UNROLL_4 for (int i = 0; i < a.second.span; ++i, w += kFilters) {
          const A one = mine[0][cell + i * a.room.pitch], two = mine[1][cell + i * a.room.pitch];
          LK_UNROLL for (int o = 0; o < kFilters; o += Four<A>::kCount) {
            const Four<A> some = *reinterpret_cast<const Four<A>*>(w + o);
            LK_UNROLL for (int e = 0; e < Four<A>::kCount; ++e) {
              sums[o + e][0] += some.v[e] * one;
              sums[o + e][1] += some.v[e] * two;
            }
          }
        }
      }
      const typename W::Sink sink(a, b, layer, own.p, own.list * a.second.each);
      LK_UNROLL for (int half = 0; half < 2; ++half) {
        const int i = at + half * kWarp;
        LK_UNROLL for (int e = 0; e < kFilters; ++e) {
          const int n = tile * kFilters + e;
          if (i < pixels && n < a.second.each) sink.put(n, i, sums[e][half]);
        }
      }
    }
  }
};

// Two tiles of 16 pixels, which are a warp's left operand, and up to 8 tiles of 8 outputs.
template <class T, bool kLast>
struct MmaInfer : Walk<T, kLast> {
  static constexpr int kThreads = kWarps * kWarp, kBlocks = 2;
  using W = Walk<T, kLast>;
  using S = Stage<T, kLast>;
  using typename W::A, typename W::Args, typename W::Block, typename W::E, typename W::Piece;
  static constexpr int kOut = S::kForms.tile, kTiles = S::kForms.tiles, kMost = S::kForms.most;
  struct alignas(8) Two {
    u32 v[2];
  };

  static LK_DEVICE void run(const Args& a) { W::template walk<MmaInfer>(a); }

  static LK_DEVICE Two operand(const E* weight, int tile) { return *reinterpret_cast<const Two*>(weight + tile * 128); }
  template <int kColumns>
  static LK_DEVICE void multiply_both(float (&sums)[2][kColumns][4], int j, const u32 (&left)[2][4], const Two& right) {
    LK_UNROLL for (int f = 0; f < 2; ++f)
        multiply<T>(sums[f][j], left[f][0], left[f][1], left[f][2], left[f][3], right.v[0], right.v[1]);
  }

  static LK_DEVICE void first(const Args& a, const Block& b, int layer, const Piece& own) {
    const int lane = tid() % kWarp;
    const E* weight = W::weights1(a, b, layer, own) + own.tile * 128 + lane * 4;
    float sums[2][kTiles][4] = {};
    W::inputs(a, b, layer, own, [&](int k) {
      u32 left[2][4];
      LK_UNROLL for (int f = 0; f < 2; ++f) {
        if constexpr (kLast)
          load_rows4(left[f], b.stage(a) + S::at(f * 16 + lane % 16, lane / 16));
        else
          load_columns4(left[f], b.stage(a) + S::at(lane % 8 + lane / 16 * 8, f * 2 + lane / 8 % 2));
      }
      const E* now = weight + k / 16 * a.packed.tiles1 * 128;
      if (own.tiles == kTiles) {
        LK_UNROLL for (int j = 0; j < kTiles; ++j) multiply_both(sums, j, left, operand(now, j));
      } else {
        LK_UNROLL for (int j = 0; j < kTiles - 1; ++j) {
          if (j >= own.tiles) break;
          multiply_both(sums, j, left, operand(now, j));
        }
      }
    });
    const Pair<A>* norm = W::norms2(a, b, layer, own.p);
    E* frame = b.frame(a, own.p);
    LK_UNROLL for (int f = 0; f < 2; ++f) {
      LK_UNROLL for (int h = 0; h < 2; ++h) {
        const u16 place = b.place(a, own.pixel + f * 16 + h * 8 + lane / 4);
        if (place == kOutside) continue;
        E* to = frame + place * a.room.pitch;
        LK_UNROLL for (int j = 0; j < kTiles; ++j) {
          if (j >= own.tiles) break;
          const int n = (own.tile + j) * kOut + lane % 4 * 2;
          const float *one = sums[f][j] + h * 2, two = one[1];
          if (a.s.parts == 1) {  // what lies beyond is packed as zeros
            const u32 made = pack_positive<T>(norm[n].normed(*one), norm[n + 1].normed(two));
            *reinterpret_cast<u32*>(to + n) = made;
            continue;
          }
          LK_UNROLL for (int e = 0; e < 2; ++e) {
            const int o = (n + e) * a.s.parts + own.list;
            if (n + e < a.s.each()) to[o] = from_acc<T>(norm[o](one[e])).bits;
          }
        }
      }
    }
  }

  static LK_DEVICE void second(const Args& a, const Block& b, int layer, const Piece& own) {
    const Shape& s = a.s;
    const int lane = tid() % kWarp, pixels = b.band, steps = a.second.span / 16;
    const int from = a.second.from(s, own.list, true), inputs = s.mid / s.groups, outputs = s.kappa / s.groups;
    const int* cells = W::cells(a, b, layer, own);
    const E* weight = W::weights3(a, b, layer, own) + own.tile * 128 + lane * 4;
    const E* frame = b.frame(a, own.p) + from + lane / 16 * 8;
    const E* rows[2];
    LK_UNROLL for (int f = 0; f < 2; ++f) {
      const int i = own.pixel + f * 16 + lane % 16;
      rows[f] = frame + b.table(a)[b.begin + (i < pixels ? i : 0)] * a.room.pitch;
    }
    // The inputs that the groups of a tile's filters have.
    int least[kMost], after[kMost];
    LK_UNROLL for (int j = 0; j < kMost; ++j) {
      const int n = own.list * a.second.each + (own.tile + j) * kOut;
      least[j] = n / outputs * inputs - from;
      after[j] = (n + kOut + outputs - 1) / outputs * inputs - from;
    }
    float sums[2][kMost][4] = {};
    LK_ROLLED for (int t = 0; t < a.second.cells; ++t) {
      const int cell = cells[t] * a.room.pitch;
      LK_ROLLED for (int q = 0; q < steps; ++q) {
        if (from + q * 16 >= s.mid) break;
        u32 left[2][4];
        LK_UNROLL for (int f = 0; f < 2; ++f) load_rows4(left[f], rows[f] + cell + q * 16);
        const E* right = weight + (t * steps + q) * a.packed.tiles3 * 128;
        LK_UNROLL for (int j = 0; j < kMost; ++j) {
          if (j >= own.tiles) break;
          if (q * 16 + 16 <= least[j] || q * 16 >= after[j]) continue;
          multiply_both(sums, j, left, operand(right, j));
        }
      }
    }
    const typename W::Sink sink(a, b, layer, own.p, own.list * a.second.each);
    LK_UNROLL for (int f = 0; f < 2; ++f) {
      LK_UNROLL for (int j = 0; j < kMost; ++j) {
        if (j >= own.tiles) break;
        LK_UNROLL for (int q = 0; q < 4; ++q) {
          const int i = own.pixel + f * 16 + q / 2 * 8 + lane / 4, n = (own.tile + j) * kOut + lane % 4 * 2 + q % 2;
          if (i < pixels && n < a.second.each) sink.put(n, i, sums[f][j][q]);
        }
      }
    }
  }
};

}  // namespace lk::mldn_block::cuda
