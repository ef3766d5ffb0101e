// Weights and norms as the kernels of an evaluation read them: norms as a scale and a shift, the first convolution's
// weights by inputs, the second's by cells, on tensor cores in the order of a matrix operand's registers, and where
// each cell lies. What is out of its range becomes zeros at places that exist.
#pragma once
#include <cmath>

#include "mldn_block/cuda_args.cuh"

namespace lk::mldn_block::cuda {

template <class T>
struct Pack {
  static constexpr int kThreads = 256, kBlocks = 2;
  using Args = PackArgs<T>;
  using E = typename Args::E;
  using A = typename Args::A;
  static constexpr bool kTensor = sizeof(E) == 2;
  static constexpr Forms kForms = forms_of(sizeof(E));

  struct Block {
    int layer, path;
    i64 all;  // of the layers and paths, which
  };

  static LK_DEVICE void run(const Args& a) {
    i64 item = block_x() * kThreads + tid();
    const i64 per = a.packed.items();
    if (item >= per * a.s.layers * a.s.paths) return;
    const i64 all = item / per;
    const Block b{static_cast<int>(all / a.s.paths), static_cast<int>(all % a.s.paths), all};
    item -= all * per;
    const Packed& p = a.packed;
    if (item < p.norm1) return norm1(a, b, item);
    if ((item -= p.norm1) < p.weight1) return weight1(a, b, item);
    if ((item -= p.weight1) < p.norm2) return norm2(a, b, static_cast<int>(item));
    if ((item -= p.norm2) < p.weight3) return weight3(a, b, item);
    cell(a, b, static_cast<int>(item - p.weight3));
  }

  static LK_DEVICE Pair<A> norm(const Args& a, const A* affine, const A* running, i64 columns, i64 at) {
    const double scale = affine[at] / sqrt(running[columns + at] + a.eps);
    return {static_cast<A>(scale), static_cast<A>(affine[columns + at] - running[at] * scale)};
  }

  static LK_DEVICE void norm1(const Args& a, const Block& b, i64 item) {
    const Shape& s = a.s;
    const int g = static_cast<int>(item / a.packed.deep), k = static_cast<int>(item % a.packed.deep);
    Pair<A> made{};
    if (k < s.depth(b.layer)) {
      const i64 factor = s.parts, width = s.width(b.layer);
      const i64 first = (s.start(b.layer) + b.path * width) * factor / s.condense,
                at = first + g * s.depth(b.layer) + k;
      if (!a.index || (a.index[at] >= 0 && a.index[at] < width))
        made = norm(a, a.affine1, a.running1, s.start(s.layers) * factor / s.condense, at);
    }
    reinterpret_cast<Pair<A>*>(a.to)[b.all * a.packed.norm1 + item] = made;
  }

  static LK_DEVICE void norm2(const Args& a, const Block& b, int item) {
    Pair<A> made{};
    const i64 columns = static_cast<i64>(a.s.layers) * a.s.paths * a.s.mid;
    if (item < a.s.mid) made = norm(a, a.affine2, a.running2, columns, b.all * a.s.mid + item);
    reinterpret_cast<Pair<A>*>(a.to + a.packed.at_norm2)[b.all * a.packed.norm2 + item] = made;
  }

  // Of an operand's registers: which of 16 inputs and 8 columns a number is; returns what remains of the item.
  static LK_DEVICE i64 fragment(i64 item, int& k, int& n) {
    const int at = static_cast<int>(item % 128), lane = at / 4;
    k = at / 2 % 2 * 8 + lane % 4 * 2 + at % 2;
    n = lane / 4;
    return item / 128;
  }

  // [group][16 inputs][tile][lane], or [group][tile][input][16 outputs].
  static LK_DEVICE void weight1(const Args& a, const Block& b, i64 item) {
    const Shape& s = a.s;
    const int deep = a.packed.deep, tiles = a.packed.tiles1;
    i64 rest;
    int k, n;
    if constexpr (kTensor) {
      rest = fragment(item, k, n);
      n += take(rest, tiles) * 8;
      k += take(rest, deep / 16) * 16;
    } else {
      rest = item;
      n = take(rest, kForms.tile);
      k = take(rest, deep);
      n += take(rest, tiles) * kForms.tile;
    }
    const int g = static_cast<int>(rest), depth = s.depth(b.layer);
    E made = 0;
    if (n < s.each() && k < depth) {
      const i64 first = (s.start(b.layer) + static_cast<i64>(b.path) * s.width(b.layer)) / s.condense * s.mid;
      made = a.weight1[first + static_cast<i64>(n * s.parts + g) * depth + k];
    }
    reinterpret_cast<E*>(a.to + a.packed.at_weight1)[b.all * a.packed.weight1 + item] = made;
  }

  // The cell of the window that a list's is, or -1.
  static LK_DEVICE int cell_of(const Args& a, const Block& b, int list, int t) {
    const Shape& s = a.s;
    if (s.sets == 0 || (kTensor && s.sets > 1 && a.second.lists == 1)) return t;
    const int set = s.sets == 1 ? 0 : list * s.sets / a.second.lists;
    const i64 q = a.cells[(b.all * s.sets + set) * s.taps + t];
    return q >= 0 && q < s.kernel * s.kernel ? static_cast<int>(q) : -1;
  }

  // [list][cell][16 inputs][tile][lane], or [list][tile][cell][input][4 filters].
  static LK_DEVICE void weight3(const Args& a, const Block& b, i64 item) {
    const Shape& s = a.s;
    const Lists& l = a.second;
    i64 rest;
    int i, n, t;
    if constexpr (kTensor) {
      rest = fragment(item, i, n);
      n += take(rest, a.packed.tiles3) * 8;
      i += take(rest, l.span / 16) * 16;
      t = take(rest, l.cells);
    } else {
      rest = item;
      n = take(rest, kForms.filters);
      i = take(rest, l.span);
      t = take(rest, l.cells);
      n += take(rest, a.packed.tiles3) * kForms.filters;
    }
    const int list = static_cast<int>(rest), o = list * l.each + n, inputs = s.mid / s.groups;
    i += l.from(s, list, kTensor);
    E made = 0;
    if (n < l.each && i < s.mid && i / inputs == o / (s.kappa / s.groups)) {
      const int tap = tap_of(a, b, list, o, t);
      if (tap >= 0) made = a.weight3[((b.all * s.kappa + o) * inputs + i % inputs) * s.taps + tap];
    }
    reinterpret_cast<E*>(a.to + a.packed.at_weight3)[b.all * a.packed.weight3 + item] = made;
  }

  // Which of a filter's taps is at a list's cell, or -1.
  static LK_DEVICE int tap_of(const Args& a, const Block& b, int list, int o, int t) {
    const Shape& s = a.s;
    if (kTensor && s.sets > 1 && s.sets == s.kappa) {
      const i64* own = a.cells + (b.all * s.sets + o) * s.taps;
      for (int tap = 0; tap < s.taps; ++tap)
        if (own[tap] == t) return tap;
      return -1;
    }
    return cell_of(a, b, list, t) < 0 ? -1 : t;
  }

  // In the frame, from a pixel's own place.
  static LK_DEVICE void cell(const Args& a, const Block& b, int item) {
    const Shape& s = a.s;
    const int q = cell_of(a, b, item / a.second.cells, item % a.second.cells);
    const int row = q / s.kernel - s.reach(), column = q % s.kernel - s.reach();
    reinterpret_cast<int*>(a.to + a.packed.at_cells)[b.all * a.packed.cells + item] =
        q < 0 ? 0 : row * (s.wide + s.reach()) + column;
  }
};

}  // namespace lk::mldn_block::cuda
