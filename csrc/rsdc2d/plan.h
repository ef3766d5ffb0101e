// How a convolution with chosen taps is cut: grids of outputs, planes of inputs, what each tap reads, scratch memory.
#pragma once
#include "lk/job.h"
#include "rsdc2d/kernel_cpu.h"

namespace {
namespace rsdc {

// Rows or columns. Every output of one phase meets its inputs at constant distances on a grid: forward, grid place i is
// output i and reads place i + shift of the input's plane e mod stride; backward, the output (an input's gradient) of
// phase f at grid place i is element i * stride + f, and only taps that reach a multiple of the stride count.
struct Axis {
  bool backward;
  i64 in, out, stride;
  i64 lo, hi;       // least and greatest shift
  i64 grid;         // places of the longest phase
  i64 plane;        // elements of the longest plane
  i64 before, gap;  // zeros in front of a staged line; between two of them

  i64 phases() const { return backward ? stride : 1; }
  i64 planes() const { return backward ? 1 : stride; }
  i64 in_step() const { return backward ? 1 : stride; }
  i64 out_step() const { return backward ? stride : 1; }
  i64 places(i64 phase) const { return phase < out ? ceil_div(out - phase, out_step()) : 0; }
  i64 elements(i64 plane_) const { return plane_ < in ? ceil_div(in - plane_, in_step()) : 0; }
};

inline Axis make_axis(bool backward, i64 in, i64 out, i64 stride, i64 pad, i64 dilation, i64 kernel) {
  const i64 first = -pad, last = (kernel - 1) * dilation - pad;
  Axis a{backward, in, out, stride, 0, 0, 0, 0, 0, 0};
  a.lo = backward ? floor_div(-last, stride) : floor_div(first, stride);
  a.hi = backward ? floor_div(stride - 1 - first, stride) : floor_div(last, stride);
  a.grid = ceil_div(out, a.out_step());
  a.plane = ceil_div(in, a.in_step());
  a.before = larger(0, -a.lo);
  a.gap = larger(a.before, larger(0, a.grid + a.hi - a.plane));
  return a;
}

// A tap that counts: where it reads in staged memory, relative to its output; its place among the weights; its shifts
// in rows and in columns.
struct Term {
  i64 at;
  int slot, down, across;
};

struct Shift {
  i64 plane, by;
  bool counts;
};
inline Shift shift_of(const Axis& a, i64 phase, i64 distance) {
  const i64 e = a.backward ? phase - distance : distance, by = floor_div(e, a.stride), rest = e - by * a.stride;
  return a.backward ? Shift{0, by, rest == 0} : Shift{rest, by, true};
}

// A convolution from `src` to `dst` maps; backward the maps have changed sides.
struct Plan {
  const Params& p;
  bool backward;
  Axis rows, cols;
  Strides src, dst;
  i64 sources, outputs;  // channels of one group

  i64 phases() const { return rows.phases() * cols.phases(); }
  i64 planes() const { return rows.planes() * cols.planes(); }
  i64 pitch() const { return cols.plane + cols.gap; }  // of staged lines
  i64 halo() const { return rows.hi - rows.lo; }
  // The set of an output's or, backward, a source's taps, counted within its group.
  i64 set_of_channel(i64 group, i64 c) const {
    return p.sets == 1 ? 0 : p.sets == p.groups ? group : group * group_out(p) + c;
  }
  bool one_set_a_group() const { return p.sets <= p.groups; }
};

inline Plan make_plan(const Params& p, bool backward) {
  const i64 gi = group_in(p), go = group_out(p);
  if (backward)
    return {p,
            true,
            make_axis(true, p.ho, p.h, p.stride_h, p.pad_h, p.dilation_h, p.kernel),
            make_axis(true, p.wo, p.w, p.stride_w, p.pad_w, p.dilation_w, p.kernel),
            p.y,
            p.x,
            go,
            gi};
  return {p,
          false,
          make_axis(false, p.h, p.ho, p.stride_h, p.pad_h, p.dilation_h, p.kernel),
          make_axis(false, p.w, p.wo, p.stride_w, p.pad_w, p.dilation_w, p.kernel),
          p.x,
          p.y,
          gi,
          go};
}

// Whether staged maps would be little but zeros: windows that reach far past them, or strides with many bare phases.
inline bool mostly_zeros(const Params& p, bool backward) {
  const Plan g = make_plan(p, backward);
  const double frame = static_cast<double>(g.planes()) * (g.halo() + 8) * g.pitch();  // may be over 2^63
  return frame > 65536 + 32 * (p.h * p.w + p.ho * p.wo) || g.phases() > 4096;
}

template <class Job>
int run_job(Job& job, const Params& p) {
  return run_team(job, parallel(p) ? p.threads : 1);
}

}  // namespace rsdc
}  // namespace
