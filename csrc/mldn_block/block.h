// How a dense block is cut: widths of layers, places in packed tensors, tiles, scratch memory.
#pragma once
#include "lk/job.h"
#include "mldn_block/params.h"
#include "rsdc2d/sparse_tile.h"

namespace {
namespace mldn {

using namespace lk;
using namespace lk::mldn_block;
using rsdc::clear;
using rsdc::every;

constexpr int kRows = 4;  // channels of a tile
#if defined(__AVX512F__)
constexpr int kWidest = 4;
#else
constexpr int kWidest = 3;
#endif
// Vectors of pixels of a tile; for float64, which is there for tests, fewer tiles are compiled.
template <class A>
constexpr int kRun = sizeof(A) == 8 ? 2 : kWidest;
template <class A>
constexpr i64 kSub = kRun<A> * kLanes<A>;  // pixels of a sub-panel

constexpr i64 kPanelBytes = 192 * 1024;  // of activated inputs at a time
constexpr i64 kPanel = 512;              // pixels whose products are summed in one go
constexpr i64 kUnits = 64;               // pieces of work that the backward pass is cut into, at most

struct Block {
  const Params& p;
  i64 pixels, end, last;  // of a map; channels of a path; of them, those that a layer reads
  i64 chunks;             // pieces of the batch in the backward pass: by shape alone, for sums in fixed order

  explicit Block(const Params& q)
      : p(q),
        pixels(q.h * q.w),
        end(q.c / q.paths + q.layers * q.kappa),
        last(end - q.kappa),
        chunks(larger(1, smaller(q.n, smaller(q.n * q.h * q.w / kPanel, kUnits / q.paths)))) {}

  i64 width(i64 l) const { return p.c / p.paths + l * p.kappa; }
  // Inputs of layers before l, of all paths.
  i64 start(i64 l) const { return p.paths * (l * (p.c / p.paths) + p.kappa * (l * (l - 1) / 2)); }
  i64 columns() const { return start(p.layers); }
  i64 mids() const { return p.layers * p.paths * p.mid; }
  i64 outs() const { return p.layers * p.paths * p.kappa; }
  // The first norm's statistics of a batch: version 1 has them once a channel, version 2 once for each of its readers.
  bool changes() const { return p.version == 2; }
  i64 shared(i64 l, i64 path) const { return changes() ? start(l) + path * width(l) : path * last; }
  i64 all_shared() const { return changes() ? columns() : p.paths * last; }
  i64 inputs() const { return p.mid / p.groups; }  // of a group of the second convolution
  i64 outputs() const { return p.kappa / p.groups; }
  i64 sets() const { return p.sets ? p.sets : 1; }
  i64 set_of(i64 o) const { return sets() == 1 ? 0 : sets() == p.groups ? o / outputs() : o; }
  i64 partner(i64 l, i64 path) const { return p.partner[l * p.paths + path]; }
  i64 first_image(i64 chunk) const { return chunk * p.n / chunks; }
  i64 rows() const { return round_up(p.mid, kRows); }
  i64 weight1(i64 l, i64 path) const { return p.mid * (start(l) + path * width(l)); }
  i64 weight_sfr(i64 l, i64 path) const { return p.kappa * (start(l) + path * width(l)); }
  i64 weight3(i64 l, i64 path) const { return (l * p.paths + path) * p.kappa * inputs() * p.taps; }
  // Pixels packed at a time, of `channels` channels.
  template <class A>
  i64 panel(i64 channels) const {
    const i64 most = larger(kSub<A>, smaller(1024, kPanelBytes / static_cast<i64>(sizeof(A)) / channels));
    return round_up(ceil_div(pixels, ceil_div(pixels, most)), kSub<A>);
  }
};

// Every other sweep over the batch goes backwards: what the one before it left in cache is met first.
inline i64 back_and_forth(i64 sweep, i64 i, i64 n) { return sweep % 2 ? n - 1 - i : i; }

}  // namespace mldn
}  // namespace
