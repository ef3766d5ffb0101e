// Strips of an input as lines of accumulators with zeros around them, so that a tap is a constant distance in memory.
#pragma once
#include "rsdc2d/pairs.h"

namespace {
namespace rsdc {

// Element (channel c, grid row i of the strip, grid column j) of plane q, shifted by (u, v), lies at
// data + q * plane + (i + u - rows.lo) * row + c * channel + j + v. With Pairs, two channels of the input are one here.
template <class T, bool Pairs = false>
struct Stage {
  using A = Acc<T>;
  const Plan& g;
  i64 channels, height;  // staged at a time; rows with the halo
  i64 channel, row, plane;
  A *memory, *data, *part;

  // together: the channels of a row follow each other, else the rows of a channel.
  Stage(const Plan& plan, i64 count, i64 strip, bool together) : g(plan), channels(count), height(strip + plan.halo()) {
    channel = together ? g.pitch() : height * g.pitch();
    row = together ? channels * g.pitch() : g.pitch();
    plane = channels * height * g.pitch();
    memory = data = part = nullptr;
  }
  // Vectors may reach over the end, by what a strip of lines plus one tile can.
  i64 elements(i64 slack) const { return g.planes() * plane + g.cols.gap + slack; }
  void take(Arena& a, i64 slack) {
    memory = a.take<A>(elements(slack));
    part = a.take<A>(16 * channels);
    data = memory + g.cols.before;
  }
  void prepare(i64 slack) { clear(memory, elements(slack)); }

  // Grid rows from i0 on of `count` channels of an image; `from` points at the first of them. What lies `ahead` of it
  // is asked for: a small plane is over before the processor has seen where it leads.
  void fill(const T* from, i64 count, i64 i0, i64 rows, i64 ahead = 0) {
    const i64 sh = g.rows.in_step(), sw = g.cols.in_step();
    const bool pixels = g.p.layout == Layout::nhwc;
    for (i64 q = 0; q < g.planes(); ++q) {
      const i64 pr = q / g.cols.planes(), pc = q % g.cols.planes(), n = g.cols.elements(pc), m = g.rows.elements(pr);
      const T* const corner = from + pr * g.src.h + pc * g.src.w;
      for (i64 u = 0; u < rows + g.halo(); ++u) {
        const i64 i = i0 + g.rows.lo + u;
        A* const to = data + q * plane + u * row;
        if (i < 0 || i >= m) {
          if (height < g.rows.grid + g.halo())  // else it was cleared once
            for (i64 c = 0; c < paired(Pairs, count); ++c) clear(to + c * channel, n);
          continue;
        }
        const T* const line = corner + i * sh * g.src.h;
        if (pixels) {
          if (i + 1 < m) touch_pixels<0>(line + sh * g.src.h, sw * g.src.w, n, count);
          if constexpr (Pairs)
            pixels_to_pairs(to, channel, line, sw * g.src.w, n, count, part);
          else
            pixels_to_lines<T>(to, channel, line, sw * g.src.w, n, count, part);
        } else if constexpr (Pairs) {
          for (i64 c = 0; c < count; c += 2)
            read_pairs(to + c / 2 * channel, line + c * g.src.c, c + 1 < count ? line + (c + 1) * g.src.c : nullptr,
                       sw * g.src.w, n);
        } else {
          for (i64 c = 0; c < count; ++c) {
            if (ahead) touch_rows(line + c * g.src.c + ahead, 0, 0, 1, n * sw * g.src.w);
            read_line<T>(to + c * channel, line + c * g.src.c, sw * g.src.w, n);
          }
        }
      }
    }
  }
};

// The taps of consecutive channels: those of one set, or of a set a channel.
struct Walk {
  const Term* term;
  const i64* count;
  i64 next_term, next_count;  // zero where all channels share a set
};

// Where the taps of every set read in a stage, for every phase: terms(set, phase) has `count` of them.
struct TermList {
  i64 taps, phases;
  Term* term;
  i64* count;
  const Term* terms(i64 set, i64 phase) const { return term + (set * phases + phase) * taps; }
  Walk walk(i64 set, i64 phase, bool shared) const {
    const i64 next = shared ? 0 : phases;
    return {terms(set, phase), count + set * phases + phase, next * taps, next};
  }
};

// Without the taps that read only zeros from grid row i; their lists are written to `term` and `count`.
inline Walk near(const Plan& g, const Walk& w, i64 i, i64 channels, Term* term, i64* count) {
  if (i + g.rows.lo >= 0 && i + g.rows.hi < g.rows.plane) return w;
  const Walk to{term, count, w.next_term ? g.p.taps : 0, w.next_count ? 1 : 0};
  for (i64 c = 0; c < (w.next_term ? channels : 1); ++c) {
    const Term* from = w.term + c * w.next_term;
    i64 n = 0;
    for (i64 t = 0; t < w.count[c * w.next_count]; ++t)
      if (i + from[t].down >= 0 && i + from[t].down < g.rows.plane) term[c * to.next_term + n++] = from[t];
    count[c * to.next_count] = n;
  }
  return to;
}

inline TermList make_terms(const Plan& g, Arena& a, i64 plane, i64 row, i64 pixel) {
  TermList l{g.p.taps, g.phases(), nullptr, nullptr};
  l.term = a.take<Term>(g.p.sets * l.phases * l.taps);
  l.count = a.take<i64>(g.p.sets * l.phases);
  if (!l.term) return l;
  for (i64 set = 0; set < g.p.sets; ++set)
    for (i64 f = 0; f < l.phases; ++f) {
      i64 n = 0;
      for (i64 t = 0; t < l.taps; ++t) {
        const Tap tap = tap_at(g.p, set, t);
        const Shift u = shift_of(g.rows, f / g.cols.phases(), tap.dy),
                    v = shift_of(g.cols, f % g.cols.phases(), tap.dx);
        if (!tap.inside || !u.counts || !v.counts) continue;
        const i64 at = (u.plane * g.cols.planes() + v.plane) * plane + (u.by - g.rows.lo) * row + v.by * pixel;
        l.term[(set * l.phases + f) * l.taps + n++] = {at, static_cast<int>(t), static_cast<int>(u.by),
                                                       static_cast<int>(v.by)};
      }
      l.count[set * l.phases + f] = n;
    }
  return l;
}

// Weights in the order in which kernels read them: [block of `wide` outputs][source][tap][wide], zeros past the end.
template <bool Pairs, class T>
void pack_weights(const Plan& g, const T* w, i64 group, i64 first, i64 wide, Acc<T>* to) {
  const i64 gi = group_in(g.p), go = group_out(g.p), taps = g.p.taps;
  const i64 by_output = g.backward ? taps : gi * taps, by_source = g.backward ? gi * taps : taps;
  const T* from = w + group * go * gi * taps + first * by_output;
  const i64 n = smaller(wide, g.outputs - first), step = Pairs ? 2 : 1;
  if (n < wide) clear(to, paired(Pairs, g.sources) * taps * wide);
  for (i64 s = 0; s < g.sources; s += step, from += step * by_source, to += taps * wide) {
    if constexpr (sizeof(T) == sizeof(Acc<T>)) {
      transpose(to, wide, from, by_output, n, taps);
    } else {
      for (i64 r = 0; r < n; ++r)
        for (i64 t = 0; t < taps; ++t) {
          const T* const one = from + r * by_output + t;
          if constexpr (Pairs)
            read_pairs(to + t * wide + r, one, s + 1 < g.sources ? one + by_source : nullptr, 0, 1);
          else
            to[t * wide + r] = to_acc(*one);
        }
    }
  }
}

}  // namespace rsdc
}  // namespace
