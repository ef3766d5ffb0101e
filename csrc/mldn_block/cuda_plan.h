// How a block is computed on a GPU in evaluation: sizes and places of what is packed for the kernels, what lies in a
// multiprocessor's shared memory, and whether all layers fit there. Arithmetic alone, for launchers, kernels and tests.
#pragma once
#include "lk/simt_index.cuh"
#include "mldn_block/params.h"

namespace lk::mldn_block::cuda {

using namespace lk::simt;

enum class Pairing : int { none, xor1, butterfly, rotate };

LK_ANYWHERE int up(int size, int block) { return (size + block - 1) / block * block; }

// Params as a kernel's argument.
struct Shape {
  i64 images;
  int high, wide, first, layers, paths, kappa, mid, groups;
  int kernel, taps, sets, parts, condense;  // parts: groups of the first convolution
  Pairing pairing;
  bool last;  // channels_last

  LK_ANYWHERE int pixels() const { return high * wide; }
  LK_ANYWHERE int reach() const { return kernel / 2; }
  LK_ANYWHERE int width(int layer) const { return first + layer * kappa; }
  LK_ANYWHERE int end() const { return width(layers); }
  // What a group of the first convolution reads.
  LK_ANYWHERE int depth(int layer) const { return width(layer) / condense; }
  LK_ANYWHERE int each() const { return mid / parts; }
  // Channels of all paths that layers before this one read.
  LK_ANYWHERE i64 start(int layer) const {
    return paths * (static_cast<i64>(layer) * first + static_cast<i64>(kappa) * layer * (layer - 1) / 2);
  }
  // The path that receives what this one makes.
  LK_ANYWHERE int partner(int layer, int path) const {
    if (pairing == Pairing::xor1) return path ^ 1;
    if (pairing == Pairing::rotate) return (path + 1 + layer % (paths - 1)) % paths;
    if (pairing == Pairing::none) return path;
    int bits = 0;
    while (2 << bits < paths) ++bits;
    return path ^ 1 << layer % (bits + 1);
  }
};

// Of a dtype, whose 16-bit forms go through tensor cores: bytes; what a warp takes of the first convolution at once,
// pixels and inputs, of outputs the tile and how many tiles; and of the second, filters of a tile and tiles.
struct Forms {
  int size, acc, pixels, depth, tile, tiles, filters, most;
  bool tensor;
};
constexpr Forms forms_of(int size) {
  if (size == 2) return {2, 4, 32, 16, 8, 6, 8, 4, true};
  return {size, size, 64, 16 / size, 16, 1, 4, 1, false};
}
constexpr int kWarps = 8;

// The second convolution as lists of filters that have their cells in common. On tensor cores groups are zeros in
// what is multiplied, and filters that have cells of their own read the whole window.
struct Lists {
  int lists, each, cells, span;  // span: inputs of a list, on tensor cores whole steps of 16

  LK_ANYWHERE Lists(const Shape& s, bool tensor) {
    if (tensor) {
      const bool own = s.sets > 1 && s.sets == s.kappa;
      lists = s.sets > 1 && !own ? s.sets : 1;
      cells = own ? s.kernel * s.kernel : s.taps;
      span = 0;
      for (int v = 0; v < lists; ++v) {
        const int here = up((v + 1) * s.mid / lists, 16) - from(s, v, true);
        span = here > span ? here : span;
      }
    } else {
      lists = s.sets > s.groups ? s.sets : s.groups;
      cells = s.taps;
      span = s.mid / s.groups;
    }
    each = s.kappa / lists;
  }
  // The first input of a list.
  LK_ANYWHERE int from(const Shape& s, int list, bool tensor) const {
    if (tensor) return list * (s.mid / lists) / 16 * 16;
    return list * s.groups / lists * span;
  }
};

// What is packed, of each layer and path: counts of numbers, and where they begin, in bytes.
struct Packed {
  i64 norm1, weight1, norm2, weight3, cells;  // counts; of norms, pairs
  i64 at_weight1, at_norm2, at_weight3, at_cells, bytes;
  int deep, tiles1, tiles3;

  LK_ANYWHERE Packed(const Shape& s, const Forms& f, const Lists& second) {
    deep = up(s.depth(s.layers - 1), f.depth);
    tiles1 = (s.each() + f.tile - 1) / f.tile;
    tiles3 = (second.each + f.filters - 1) / f.filters;
    norm1 = static_cast<i64>(s.parts) * deep;
    weight1 = norm1 * tiles1 * f.tile;
    norm2 = up(s.mid, 16);
    cells = static_cast<i64>(second.lists) * second.cells;
    weight3 = cells * second.span * tiles3 * f.filters;
    const i64 all = static_cast<i64>(s.layers) * s.paths;
    at_weight1 = whole(all * norm1 * 2 * f.acc);
    at_norm2 = at_weight1 + whole(all * weight1 * f.size);
    at_weight3 = at_norm2 + whole(all * norm2 * 2 * f.acc);
    at_cells = at_weight3 + whole(all * weight3 * f.size);
    bytes = at_cells + whole(all * cells * 4);
  }
  LK_ANYWHERE i64 items() const { return norm1 + weight1 + norm2 + weight3 + cells; }
  static LK_ANYWHERE i64 whole(i64 bytes) { return (bytes + 15) / 16 * 16; }
};

// What a block of threads does: a band of rows of an image, of one path, one layer a launch; or, resident, an image of
// all paths that meet, all layers, whose maps stay in shared memory. There: maps, then the first convolution's
// activated outputs with a frame of zeros, then what warps stage, then where each pixel lies in that frame.
struct Room {
  int rows, bands, together;
  bool resident;
  int pitch;                      // numbers of a pixel (tensor cores), else of a channel, in the frame
  int home, frame, stage, table;  // bytes: of a path's maps, of a path's frame, of a warp's stage, of the table
  int slices1, slices3;           // pieces that the tiles of both convolutions are cut into

  LK_ANYWHERE int shared() const { return together * (home + frame) + kWarps * stage + table; }
};

inline Room room_for(const Shape& s, const Forms& f, int rows, bool resident) {
  Room r{};
  const int high = resident ? s.high : rows, held = high + 2 * s.reach();
  const i64 frame = static_cast<i64>(held) * (s.wide + s.reach()) + s.reach();
  const i64 pixels = static_cast<i64>(held < s.high ? held : s.high) * s.wide + 16 / f.size;
  r.rows = high;
  r.bands = static_cast<int>(ceil_div(s.high, high));
  r.resident = resident;
  r.together = !resident ? 1 : s.pairing == Pairing::xor1 ? 2 : s.paths;
  auto bytes = [](i64 n) { return static_cast<int>(n < 1 << 20 ? Packed::whole(n) : 1 << 20); };
  r.pitch = f.tensor ? up(s.mid, 16) + 8 : bytes(frame * f.size) / f.size;
  r.frame = bytes(f.tensor ? frame * r.pitch * f.size : static_cast<i64>(r.pitch) * s.mid * f.size);
  if (resident) r.home = bytes(Packed::whole(static_cast<i64>(s.pixels()) * f.size) * s.width(s.layers - 1));
  r.stage = f.tensor ? f.depth * f.pixels * f.size : f.depth * (f.pixels * f.size + 16);
  r.table = bytes(2 * pixels);
  return r;
}

// A place in the frame is 16 bits.
inline bool fits(const Shape& s, const Room& r, int most) {
  const i64 bytes = static_cast<i64>(r.together) * (r.home + r.frame) + kWarps * r.stage + r.table;
  return bytes <= most && static_cast<i64>(r.rows + 2 * s.reach()) * (s.wide + s.reach()) < 65535;
}

// rows 0: nothing fits. `most`: bytes of shared memory that a block of threads may have.
inline Room plan(const Shape& s, const Forms& f, int most) {
  constexpr int kBlocks = 264, kSmall = 256;
  Room r = room_for(s, f, s.high, true);
  // Of large maps of few images, a block of threads an image would leave the device idle.
  const bool enough = s.images * (s.paths / r.together) >= kBlocks / 4 || s.pixels() <= kSmall;
  if (!enough || !fits(s, r, most)) {
    const int at_once = most < kMostShared ? most : kMostShared;  // two blocks a multiprocessor, where it has more
    int low = 0, top = s.high;
    while (low < top) {
      const int rows = (low + top + 1) / 2;
      if (fits(s, room_for(s, f, rows, false), at_once))
        low = rows;
      else
        top = rows - 1;
    }
    if (low == 0 && fits(s, room_for(s, f, 1, false), most)) low = 1;
    if (low == 0) return Room{};
    i64 bands = ceil_div(s.high, low);
    // More bands than fit, where blocks are few and what they compute twice is little.
    while (s.images * s.paths * bands < kBlocks && s.high / (2 * bands) >= 4 * s.reach() && s.high >= 4 * bands)
      bands *= 2;
    r = room_for(s, f, static_cast<int>(ceil_div(s.high, bands)), false);
  }
  const Packed packed(s, f, Lists(s, f.tensor));
  const int high = r.rows + 2 * s.reach() < s.high ? r.rows + 2 * s.reach() : s.high;
  auto slices = [&](int tiles, int most_tiles, int rows) {
    int count = (tiles + most_tiles - 1) / most_tiles;
    const i64 warps = r.together * ceil_div(static_cast<i64>(rows) * s.wide, f.pixels);
    while (count < tiles && warps * count < kWarps) ++count;
    const int each = (tiles + count - 1) / count;
    return (tiles + each - 1) / each;
  };
  r.slices1 = slices(packed.tiles1, f.tiles, high);
  r.slices3 = slices(packed.tiles3, f.most, r.rows);
  return r;
}

}  // namespace lk::mldn_block::cuda
