// NHWC convolution microkernel: one vector of channels, a row of output columns, any list of runs of taps.
#pragma once
#include "lk/vec.h"

namespace {
namespace nhwc {

using lk::i64;

// A run is 1, 2, 3, 4, 5 or 7 taps of one kernel row whose columns are one output column apart, so that one pixel
// meets tap j of column t and tap j-1 of column t+1. Weights of a run stay in registers, each pixel is loaded once.
constexpr int kRunKinds = 6;
constexpr int kRunLength[kRunKinds] = {7, 5, 4, 3, 2, 1};

#if defined(__AVX512F__)
template <class A>
constexpr int kTile = sizeof(A) == 8 ? 8 : 16;  // of doubles: for the sake of compile time
constexpr int kLongestRun = 7;
#else
template <class A>
constexpr int kTile = 8;
constexpr int kLongestRun = 5;  // eight sums, five weights and a pixel: 14 of 16 registers
#endif

// The first piece of a chain of n taps cut into pieces of at most `longest`, as equal as the kinds allow.
inline int piece(int n, int longest) {
  const int pieces = (n + longest - 1) / longest, length = (n + pieces - 1) / pieces;
  return length == 6 ? (n == 6 ? 3 : longest) : length;
}
inline int run_kind(int length) { return length == 7 ? 0 : 6 - length; }

struct Run {
  int plane, row, kind;  // row: kernel row counted from the plane's first
  int dr, dc, slot;      // row and column offset of the first tap, its weight
  int lo, hi;            // at output column 0, which pixels of the row from the first tap's on lie in the image
  i64 x, w;              // row, column and weight as offsets into a staged row and into packed weights
};

template <class A>
struct RunAt {
  const A* x;  // pixel that meets the first tap at output column 0
  const A* w;  // weights of the run, a vector each
  int lo, hi;  // pixels [lo, hi) from x on lie in the image
};

// At most so many pixels at either end of a run may lie outside of the image and are then not read.
constexpr int skipped(int length) { return length > 4 ? length / 2 : length - 1; }

// Taps beyond the border are left out: of 7x7 on a 7x7 map they are a quarter of the work. `lo`, `hi`: as in RunAt,
// counted from this tile on. InPlace: pixels are `step` elements apart, else a vector.
template <int L, int TW, bool InPlace, class A>
LK_INLINE void add_run(Vec<A>* acc, const A* x, i64 step, const A* w, int lo, int hi) {
  constexpr int V = kLanes<A>, N = TW + L - 1, kSkip = skipped(L);
  LK_OPAQUE(x);
  LK_OPAQUE(w);
  Vec<A> k[L];
#pragma GCC unroll 16
  for (int j = 0; j < L; ++j) k[j] = vload(w + j * V);
#pragma GCC unroll 32
  for (int q = 0; q < N; ++q) {
    const A* const at = InPlace ? x : x + q * V;
    if constexpr (InPlace) {
      x += step;
      LK_OPAQUE(x);
    }
    if (q < kSkip && q < lo) continue;
    if (q >= N - kSkip && q >= hi) continue;
    Vec<A> v = vload(at);
    if (L > 1) LK_KEEP(v);
#pragma GCC unroll 16
    for (int j = 0; j < L; ++j)
      if (q - j >= 0 && q - j < TW) acc[q - j] = vfma(v, k[j], acc[q - j]);
  }
}

// Lines that a later row will read, fetched a few at a time between sums: the memory works while they do.
struct Stream {
  const char* at;
  i64 step;  // bytes from one pixel to the next
};
struct Ahead {
  Stream* from;
  int streams, rate;  // rate: pixels of every stream at each turn
  i64 done, pixels;

  LK_INLINE int turn() const { return done < pixels ? rate : 0; }
  LK_INLINE void fetch(int n) {
    if (n == 0) return;
    done += n;
    if (streams == 1) {
      const char* at = from->at;
      for (const i64 step = from->step; n > 0; --n, at += step) __builtin_prefetch(at, 0, 2);
      from->at = at;
      return;
    }
    for (; n > 0; --n)
      for (Stream *s = from, *end = from + streams; s != end; ++s) {
        __builtin_prefetch(s->at, 0, 2);
        s->at += s->step;
      }
  }
};

template <class A>
struct Tile {
  const RunAt<A>* runs;  // by kind
  const int* count;      // of each kind
  const A* init;         // what every sum starts from
  i64 w0, out_step;      // offset added to every run's weights; elements from one output column to the next
  i64 step;              // elements from one pixel to the next, where pixels are read in place
  bool stream;           // past the caches
};

// `tiles` neighbouring tiles of TW output columns each, from column `at` on; x0 is added to every run's pixel.
template <class A, int TW, bool InPlace>
void conv_tiles(const Tile<A>& a, i64 x0, int at, A* out, int tiles, Ahead& ahead) {
  const int rate = ahead.turn();
  const i64 w0 = a.w0, out_step = a.out_step, step = InPlace ? a.step : kLanes<A>;
  const Vec<A> init = vload(a.init);
  for (; tiles > 0; --tiles, x0 += TW * step, at += TW) {
    Vec<A> acc[TW];
#pragma GCC unroll 16
    for (int t = 0; t < TW; ++t) acc[t] = init;
    const RunAt<A>* r = a.runs;
#define LK_RUNS(KIND)                                                                                \
  for (int n = a.count[KIND]; n > 0; --n, ++r) {                                                     \
    ahead.fetch(rate);                                                                               \
    add_run<kRunLength[KIND], TW, InPlace>(acc, r->x + x0, step, r->w + w0, r->lo - at, r->hi - at); \
  }
    LK_RUNS(0);
    LK_RUNS(1);
    LK_RUNS(2);
    LK_RUNS(3);
    LK_RUNS(4);
    LK_RUNS(5);
#undef LK_RUNS
    if (a.stream) {
#pragma GCC unroll 16
      for (int t = 0; t < TW; ++t, out += out_step) vstream(out, acc[t]);
    } else {
#pragma GCC unroll 16
      for (int t = 0; t < TW; ++t, out += out_step) vstore(out, acc[t]);
    }
  }
}

// Columns split into tiles as equal as can be: 14 columns are 7 + 7, not 8 + 6.
struct Split {
  int narrow, narrow_tiles, wide_tiles;  // wide: one column more
};
template <class A>
Split split_columns(i64 columns) {
  if (columns <= 0) return {0, 0, 0};
  const int n = static_cast<int>(columns), tiles = (n + kTile<A> - 1) / kTile<A>;
  return {n / tiles, tiles - n % tiles, n % tiles};
}

template <class A, bool InPlace>
void conv_row(const Tile<A>& a, i64 x0, A* out, const Split& s, Ahead& ahead) {
  using Fn = void (*)(const Tile<A>&, i64, int, A*, int, Ahead&);
#define LK_T(n) conv_tiles<A, n, InPlace>
#if defined(__AVX512F__)
  // Wider ones, where there are any: no tile of doubles is.
#define LK_W(n) conv_tiles<A, (n <= kTile<A> ? n : 1), InPlace>
  static constexpr Fn fn[] = {nullptr, LK_T(1),  LK_T(2),  LK_T(3),  LK_T(4),  LK_T(5),  LK_T(6),  LK_T(7), LK_T(8),
                              LK_W(9), LK_W(10), LK_W(11), LK_W(12), LK_W(13), LK_W(14), LK_W(15), LK_W(16)};
#undef LK_W
#else
  static constexpr Fn fn[] = {nullptr, LK_T(1), LK_T(2), LK_T(3), LK_T(4), LK_T(5), LK_T(6), LK_T(7), LK_T(8)};
#endif
#undef LK_T
  const int wide = s.wide_tiles * (s.narrow + 1);
  if (wide) fn[s.narrow + 1](a, x0, 0, out, s.wide_tiles, ahead);
  fn[s.narrow](a, x0 + wide * (InPlace ? a.step : kLanes<A>), wide, out + wide * a.out_step, s.narrow_tiles, ahead);
}

}  // namespace nhwc
}  // namespace
