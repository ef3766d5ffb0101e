// How a call is cut into units of work, and the team that does them.
#pragma once
#include "multi_dwconv2d/kernel_cpu.h"
#include "multi_dwconv2d/nchw_plan.h"

namespace {
namespace nchw {

constexpr i64 kTeamWork = 1 << 19;      // multiply-adds that repay waking a team of threads
constexpr i64 kStageBytes = 192 << 10;  // staged maps of a unit stay in the second-level cache
constexpr i64 kChannels = 16;           // channels of a unit, their weights packed together
constexpr i64 kBatchBytes = 12 << 10;   // staged maps of the images that a kernel works on at a time
constexpr i64 kFarPlane = 2 << 10;      // planes or calls from these sizes on are fetched ahead of the processor's
constexpr i64 kFarBytes = 20 << 20;     // own guesses, which do for smaller ones
constexpr i64 kPastBytes = 16 << 20;    // outputs from this size on bypass the caches
constexpr i64 kBatch = 16;              // most of these images
constexpr i64 kUnitsPerThread = 8;

struct Unit {
  i64 c0, c1, n0, n1;
  Region region;
};

struct Cut {
  Frame frame;
  i64 rows, cols, pitch;   // of a region; pitch of an output in scratch
  i64 row_cuts, col_cuts;  // regions along each axis
  i64 channels, images;    // of a unit
  i64 batch;               // images worked on at a time
  i64 ho, wo;

  i64 units(const Params& p) const { return ceil_div(p.c, channels) * ceil_div(p.n, images) * row_cuts * col_cuts; }
  Region region(i64 cut) const {
    const i64 i = cut / col_cuts * rows, j = cut % col_cuts * cols;
    return {i, smaller(i + rows, ho), j, smaller(j + cols, wo)};
  }
  Unit unit(i64 u, const Params& p) const {
    const i64 per = ceil_div(p.n, images), cuts = row_cuts * col_cuts, rest = u / cuts;
    const i64 c = rest / per * channels, n = rest % per * images;
    return {c, smaller(c + channels, p.c), n, smaller(n + images, p.n), region(u % cuts)};
  }
};

// Regions fit the cache; there are `want` units or more where the shape allows it.
inline Cut make_cut(const Plan& plan, const Params& p, i64 size_of, i64 want) {
  Cut c;
  const i64 wide = kWide / size_of, halo = plan.top + plan.bottom + kSpareRows;
  const i64 line = larger(1, kStageBytes / (size_of * larger(1, plan.sources.size)));  // elements of one slot
  c.ho = plan.ho;
  c.wo = plan.wo;
  c.cols = plan.wo;
  const i64 most = line / (halo + 8) - plan.left - plan.right - 2 * wide;
  if (c.cols > larger(most, 16 * wide)) c.cols = larger(most, 16 * wide) / wide * wide;
  const Frame one = frame(plan, 1, c.cols, wide, size_of);
  c.rows = plan.ho;
  const i64 fit = line / one.pitch - halo;
  if (c.rows > larger(fit, 8)) c.rows = larger(fit, 8) / 8 * 8;
  const i64 maps = p.n * p.c;
  if (maps * 2 < want) c.rows = smaller(c.rows, larger(8, ceil_div(ceil_div(plan.ho * maps, want), 8) * 8));
  c.row_cuts = ceil_div(c.ho, c.rows);
  c.col_cuts = ceil_div(c.wo, c.cols);
  c.pitch = ceil_div(c.cols, wide) * wide;
  c.frame = frame(plan, c.rows, c.cols, wide, size_of);
  c.channels = smaller(kChannels, p.c);
  c.images = p.n;
  const i64 cuts = c.row_cuts * c.col_cuts;
  if (ceil_div(p.c, c.channels) * cuts < want) c.images = larger(1, p.n * ceil_div(p.c, c.channels) * cuts / want);
  if (ceil_div(p.c, c.channels) * ceil_div(p.n, c.images) * cuts < want)
    c.channels = larger(1, p.c * ceil_div(p.n, c.images) * cuts / want);
  c.batch = larger(1, smaller(kBatch, kBatchBytes / (size_of * larger(1, plan.sources.size) * c.frame.size)));
  c.batch = smaller(c.batch, c.images);
  return c;
}

inline int team(const Params& p) { return p.n * p.c * p.ho * p.wo * taps_of(p) > kTeamWork ? p.threads : 1; }

// Tiles are 8 or 7 rows: how many of the fewest that cover a map of so many rows can be 7, to end where it ends.
inline i64 sevens_of(i64 rows) {
  const i64 tiles = ceil_div(rows, 8), sevens = 8 * tiles - rows;
  return sevens <= tiles ? sevens : 0;
}

// job.run(unit, scratch, packed) for every unit, on a team.
template <class Job>
int for_units(i64 units, int threads, const Job& job) {
  using A = typename Job::A;
  int error = ok;
  i64 next = 0;
  const auto work = [&] {
    A* memory = static_cast<A*>(scratch(static_cast<std::size_t>(job.scratch_size())));
    if (!memory) {
      __atomic_store_n(&error, static_cast<int>(out_of_memory), __ATOMIC_RELAXED);
      return;
    }
    i64 packed = -1;
    clear(memory, job.slots_size());
    for (;;) {
      const i64 u = __atomic_fetch_add(&next, i64(1), __ATOMIC_RELAXED);
      if (u >= units) {
        stream_fence();
        return;
      }
      job.run(u, memory, packed);
    }
  };
  if (threads > 1 && units > 1) {
#pragma omp parallel num_threads(threads)
    work();
  } else {
    work();
  }
  return error;
}

}  // namespace nchw
}  // namespace
