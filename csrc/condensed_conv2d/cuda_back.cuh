// The gradients but the weight's, in fixed orders. First that of what each group picked, before its scale: the product
// of the output's gradient and the weight, times the activation's slope; of its sums over a block's pixels the
// gradients of scale and shift are made. Then each channel of x takes what its entries have, in the order of the index.
#pragma once
#include "condensed_conv2d/cuda_product.cuh"

namespace lk::condensed_conv2d::cuda {

// Of the activation.
template <class A>
LK_DEVICE A slope_of(A z, bool hard) {
  if (!hard) return z > 0 ? A(1) : A(0);
  return z > -3 && z < 3 ? (2 * z + 3) * (A(1) / 6) : z > 0 ? A(1) : A(0);
}

template <class T>
struct BackArgs {
  using E = typename Stored<T>::type;
  Problem p;
  const E *g, *x, *w;
  const Acc<T>*scale, *shift;
  Acc<T>*picked, *part;  // picked: [entry][pixel], rows of `pitch`; part: [tile of pixels][scale, shift][entry]
  i64 pitch;
  int together, splits;  // groups of a block, blocks of the same pixels
};

template <class T, int kN_>
struct ProductBack : ProductTile<T, kN_, true> {
  static constexpr int kThreads = 256, kBlocks = 2;
  using F = Pixels<T>;
  using Tile = ProductTile<T, kN_, true>;
  using Tile::kChunks, Tile::kCopy, Tile::kDepth, Tile::kLeft, Tile::kM, Tile::kN, Tile::kStage, Tile::kTensor,
      Tile::kUnits, Tile::kWarpM, Tile::kWarpN, Tile::kWeights, Tile::left_of, Tile::right_of;
  using typename Tile::A, typename Tile::Chunk, typename Tile::Cursor, typename Tile::E, typename Tile::Mine,
      typename Tile::Sums;
  using Args = BackArgs<T>;
  static constexpr int kWide = kM + Four<A>::kCount;  // of a column's sums

  static constexpr int shared_bytes() {
    return 2 * kStage * static_cast<int>(sizeof(E)) + (kN * kWide + 2 * kChunks * kN) * static_cast<int>(sizeof(A)) +
           2 * kM * static_cast<int>(sizeof(i64));
  }

  static LK_DEVICE bool shallow(const Problem& p) { return p.each <= kDepth / 2; }

  struct Loader {
    Cursor at;
    Chunk raw[kUnits];
    E weight[kWeights];

    LK_DEVICE void load(const Args& a, const i64* places) {
      const Problem& p = a.p;
      const Mine mine{p.last, shallow(p)};
      LK_UNROLL for (int i = 0; i < kUnits; ++i) {
        if (!mine.has(i)) continue;
        const int j = at.k + mine.row(i);
        const bool is = j < p.each;
        const i64 filter = is ? static_cast<i64>(j) * p.groups + at.group : 0;
        raw[i] = F::load(a.g + filter * p.y.channel, places + mine.chunk(i) * kCopy, is, p.y.vector);
      }
      const int k = at.tile + tid() % kN, j = at.k + tid() / kN, step = kThreads / kN;
      const u32 entry = (static_cast<u32>(j) * p.groups + at.group) * p.picked + k;
      LK_UNROLL for (int i = 0; i < kWeights; ++i) {
        const bool is = k < p.picked && j + i * step < p.each;
        weight[i] = is ? a.w[entry + static_cast<u32>(i) * step * p.groups * p.picked] : E(0);
      }
      at.advance(p.each, p.picked);
    }

    LK_DEVICE void store(const Problem& p, E* stage) const {
      const Mine mine{p.last, shallow(p)};
      LK_UNROLL for (int i = 0; i < kUnits; ++i) {
        if (mine.has(i)) *reinterpret_cast<Chunk*>(stage + left_of(mine.row(i), mine.chunk(i))) = raw[i];
      }
      LK_UNROLL for (int i = 0; i < kWeights; ++i) {
        const int item = tid() + i * kThreads;
        stage[kLeft + right_of(item % kN, item / kN)] = weight[i];
      }
    }
  };

  static LK_DEVICE void run(const Args& a) {
    const Problem& p = a.p;
    E* stages = reinterpret_cast<E*>(shared());
    A* out = reinterpret_cast<A*>(stages + 2 * kStage);
    A* sums_of = out + kN * kWide;
    i64* from = reinterpret_cast<i64*>(sums_of + 2 * kChunks * kN);  // each pixel's place in x, then in y
    const Share mine = share_of(p, a.splits, a.together, kM, kThreads, from);
    Loader loader;
    loader.at = {mine.first, 0, 0};
    sync();
    Cursor now = loader.at;
    loader.load(a, from + kM);
    loader.store(p, stages);
    sync();
    Sums sums;
    Tile::clear(sums);
    for (int stage = 0; now.group < mine.last; stage ^= 1) {
      const bool more = loader.at.group < mine.last;
      if (more) loader.load(a, from + kM);
      Tile::multiply_stage(stages + stage * kStage, sums, shallow(p));
      if (now.k + kDepth >= p.each) {
        put(sums, out);
        sync();
        finish(a, out, sums_of, from, now, mine.tile);
        sync();
        total(a, sums_of, now, mine.tile);
        Tile::clear(sums);
      }
      now.advance(p.each, p.picked);
      if (more) loader.store(p, stages + (stage ^ 1) * kStage);
      sync();
    }
  }

  // Column by column.
  static LK_DEVICE void put(const Sums& sums, A* out) {
    const int lane = tid() % kWarp, warp = tid() / kWarp;
    if constexpr (kTensor) {
      A* mine = out + (warp % 2 * kWarpN + lane % 4 * 2) * kWide + warp / 2 * kWarpM + lane / 4;
      LK_UNROLL for (int i = 0; i < kWarpM / 16; ++i) {
        LK_UNROLL for (int j = 0; j < kWarpN / 8; ++j) {
          LK_UNROLL for (int q = 0; q < 4; ++q) mine[(j * 8 + q % 2) * kWide + i * 16 + q / 2 * 8] = sums[i][j][q];
        }
      }
    } else {
      LK_UNROLL for (int i = 0; i < 4; ++i) {
        LK_UNROLL for (int j = 0; j < 4; ++j)
            out[(4 * warp + j) * kWide + (lane + i / kCopy * kWarp) * kCopy + i % kCopy] = sums[i][j][0];
      }
    }
  }

  static LK_DEVICE void finish(const Args& a, const A* out, A* sums_of, const i64* places, const Cursor& now,
                               i64 tile) {
    const Problem& p = a.p;
    LK_ROLLED for (int item = tid(); item < kN * kChunks; item += kThreads) {
      const int n = p.last ? item % kN : item / kChunks, c = p.last ? item / kN : item % kChunks, k = now.tile + n;
      if (k >= p.picked) continue;
      const int entry = now.group * p.picked + k, q = p.channel(entry);
      const A scale = a.scale[entry], shift = a.shift[entry];
      const Chunk x = F::load(a.x + (q >= 0 ? q * p.x.channel : 0), places + c * kCopy, q >= 0, p.x.vector);
      A by_scale = 0, by_shift = 0;
      constexpr int kFour = Four<A>::kCount;
      A* to = a.picked + entry * a.pitch + tile * kM + c * kCopy;
      LK_UNROLL for (int f = 0; f < kCopy / kFour; ++f) {
        Four<A> made = *reinterpret_cast<const Four<A>*>(out + n * kWide + c * kCopy + f * kFour);
        LK_UNROLL for (int e = 0; e < kFour; ++e) {
          const bool is = places[c * kCopy + f * kFour + e] >= 0;
          const A u = x.get(f * kFour + e), slope = slope_of(u * scale + shift, p.hard);
          const A z = is ? made.v[e] * slope : A(0);
          by_scale += z * u;
          by_shift += z;
          made.v[e] = z * scale;
        }
        *reinterpret_cast<Four<A>*>(to + f * kFour) = made;
      }
      sums_of[c * kN + n] = by_scale;
      sums_of[(kChunks + c) * kN + n] = by_shift;
    }
  }

  // Over the tile's pixels, in their order.
  static LK_DEVICE void total(const Args& a, const A* sums_of, const Cursor& now, i64 tile) {
    const int n = tid() % kN, which = tid() / kN, k = now.tile + n;
    if (which > 1 || k >= a.p.picked) return;
    A sum = 0;
    for (int c = 0; c < kChunks; ++c) sum += sums_of[(which * kChunks + c) * kN + n];
    const i64 entries = static_cast<i64>(a.p.groups) * a.p.picked;
    a.part[(tile * 2 + which) * entries + now.group * a.p.picked + k] = sum;
  }
};

template <class T>
struct CollectArgs {
  using E = typename Stored<T>::type;
  Problem p;
  const Acc<T>* picked;
  const i64 *order, *bounds;  // the entries of channel c are order[bounds[c]] to order[bounds[c + 1]]
  E* gx;
  i64 pitch, chunks;
};

// A thread makes a chunk of one channel; lanes are chunks (nchw) or channels (nhwc).
template <class T>
struct Collect : Pixels<T> {
  static constexpr int kThreads = 256, kBlocks = sizeof(T) == 8 ? 3 : 4;
  using F = Pixels<T>;
  using E = typename F::E;
  using F::kCopy;
  using Args = CollectArgs<T>;
  using Wide = Four<Acc<T>>;

  static LK_DEVICE void run(const Args& a) {
    const Problem& p = a.p;
    i64 item = block_x() * kThreads + tid();
    if (item >= a.chunks * p.c) return;
    i64 chunk;
    int c;
    if (p.last) {
      c = take(item, p.c);
      chunk = item;
    } else {
      chunk = item % a.chunks;
      c = static_cast<int>(item / a.chunks);
    }
    Acc<T> sums[kCopy];
    LK_UNROLL for (auto& sum : sums) sum = 0;
    const Acc<T>* from = a.picked + chunk * kCopy;
    for (i64 i = a.bounds[c]; i < a.bounds[c + 1]; ++i) {
      const Acc<T>* row = from + a.order[i] * a.pitch;
      LK_UNROLL for (int f = 0; f < kCopy; f += Wide::kCount) {
        const Wide some = *reinterpret_cast<const Wide*>(row + f);
        LK_UNROLL for (int e = 0; e < Wide::kCount; ++e) sums[f + e] += some.v[e];
      }
    }
    typename F::Chunk made{};
    i64 places[kCopy];
    LK_UNROLL for (int e = 0; e < kCopy; ++e) {
      made.put(e, sums[e]);
      places[e] = e && p.x.vector ? -1 : place_of(p, p.x, chunk * kCopy + e);
    }
    F::store(made, a.gx + c * p.x.channel, places, p.x.vector);
  }
};

}  // namespace lk::condensed_conv2d::cuda
