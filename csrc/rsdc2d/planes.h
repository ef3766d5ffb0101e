// NCHW, one channel a group: every plane has taps of its own. Forward, and the input gradient as a convolution of the
// output's.
#pragma once
#include "rsdc2d/dense.h"
#include "rsdc2d/plane_direct.h"

namespace {
namespace rsdc {

constexpr i64 kPlaneBytes = 11 << 10;  // of a staged plane: two stay in the first-level cache
constexpr i64 kPastPlanes = 16 << 20;  // outputs from this size on bypass the caches
constexpr i64 kImages = 8;             // planes of a channel that follow each other: their taps are then foreseen

// Lines begin on vectors.
template <class T>
struct PlaneStage : Stage<T> {
  using A = Acc<T>;
  static constexpr i64 V = kLanes<A>;
  PlaneStage(const Plan& g, i64 strip) : Stage<T>(g, 1, strip, false) {
    this->row = round_up(g.pitch(), V);
    if (this->row * static_cast<i64>(sizeof(A)) % 2048 == 0) this->row += V;  // or rows share few cache sets
    this->channel = this->height * this->row;
    this->plane = this->channel;
  }
  static i64 row_bytes(const Plan& g) { return g.planes() * round_up(g.pitch(), V) * static_cast<i64>(sizeof(A)); }
  i64 slack() const { return kTall * this->row + 2 * V + round_up(this->g.cols.before, V); }
  void take(Arena& a) {
    Stage<T>::take(a, slack());
    this->data = this->memory + round_up(this->g.cols.before, V);
  }
  void prepare(A* at) { clear(at - round_up(this->g.cols.before, V), Stage<T>::elements(slack())); }
};

template <class A>
__attribute__((noinline)) void copy_rows(A* to, i64 to_row, const A* from, i64 from_row, i64 rows, i64 n) {
  constexpr i64 V = kLanes<A>;
  for (; rows > 0; --rows, to += to_row, from += from_row) {
    for (i64 j = 0; j + V <= n; j += V) vstore(to + j, vload(from + j));
    if (n % V) vstore(to + n - V, vload(from + n - V));
  }
}

// Whether planes are read where they are, and a tile fits. Inner rows are loaded with what lies beside them, so it has
// to be more rows, not those of overlapping or expanded ones.
template <class T>
bool reads_in_place([[maybe_unused]] const Plan& g) {
#if defined(__AVX512F__)
  return __is_same(T, float) && g.phases() == 1 && g.planes() == 1 && g.src.w == 1 && g.dst.w == 1 &&
         g.src.h >= kReach && g.cols.in >= kReach && g.rows.grid >= kTall && g.cols.grid >= kLanes<float> &&
         g.rows.lo >= -kReach && g.cols.lo >= -kReach && g.rows.grid + g.rows.hi <= g.rows.in + kReach &&
         g.cols.grid + g.cols.hi <= g.cols.in + kReach && g.cols.hi <= kMostRight;
#else
  return false;
#endif
}

template <class T>
struct Planes {
  using A = Acc<T>;
  static constexpr i64 V = kLanes<A>;
  static constexpr bool kSame = sizeof(T) == sizeof(A);
  const Plan& g;
  const T *src, *w, *bias;
  T* dst;
  i64 images;
  bool direct, past;        // outputs go straight to their maps; past the caches
  bool in_place;            // inputs are read where they are
  i64 strip, strips, flat;  // flat: elements of one channel's outputs of a strip
  PlaneStage<T> stage;
  UnitList list;
  A *buffer[2], *made, *weights;
  i64 feed_at_once;
  i64 packed;  // what `weights` are of

  // Rows of the next piece, that are staged between the tiles of this one: what was just written is not read at once,
  // and the memory works meanwhile.
  struct Feed {
    A* to;
    const T *from, *ahead;
    i64 rows, at_once;
  } feed;

  Planes(const Plan& plan, const T* s, const T* weight, const T* b, T* d)
      : g(plan),
        src(s),
        w(weight),
        bias(b),
        dst(d),
        images(best_images(plan)),
        direct(kSame && plan.phases() == 1 && plan.dst.w == 1 && plan.cols.grid >= V),
        past(false),
        in_place(direct && reads_in_place<T>(plan)),
        strip(in_place ? plan.rows.grid : tall_strip(plan)),
        strips(ceil_div(plan.rows.grid, strip)),
        flat((strip + kTall) * round_up(plan.cols.grid, V)),
        stage(plan, strip),
        list{},
        buffer{nullptr, nullptr},
        made(nullptr),
        weights(nullptr),
        feed_at_once(ceil_div(strip + plan.halo(), ceil_div(strip, kTall) * ceil_div(plan.cols.grid, V))),
        packed(-1),
        feed{} {
    const Strides& t = g.dst;
    if (kCanStream && __is_same(T, float) && g.phases() == 1 && g.p.n * t.n * 4 >= kPastPlanes)
      past = direct && reinterpret_cast<std::uintptr_t>(dst) % 64 == 0 && (t.n | t.c | t.h) % 16 == 0;
    if (!past && !in_place) images = 1;  // outputs that the caches keep are better written in their order
  }

  static i64 best_images(const Plan& g) {
    const i64 units = parallel(g.p) ? 4 * g.p.threads : 1;
    return larger(1, smaller(kImages, g.p.n * g.p.co / units));
  }
  static i64 tall_strip(const Plan& g) {
    const i64 most = kPlaneBytes / PlaneStage<T>::row_bytes(g) - g.halo();
    return smaller(g.rows.grid, larger(1, most / kTall) * kTall);
  }
  void share(Arena& a) { list = take_units(g, a); }
  void own(Arena& a) {
    for (A*& b : buffer) {
      stage.take(a);
      b = stage.data;
    }
    made = a.take<A>(flat);
    weights = a.take<A>(g.p.taps);
  }

  // h rows of n columns. Exact: nothing beyond them is written, and there are enough of both.
  void bands(const PlaneTile<A>& t, const A* x, A* out, i64 h, i64 n, bool exact) {
    for (i64 i = 0; i < h;) {
      const bool tall = h - i > kShort && (!exact || h >= kTall);
      const i64 height = tall ? kTall : kShort;
      if (exact) i = smaller(i, h - height);
      for (i64 j = 0; j < n; j += V) {
        const i64 at = exact ? smaller(j, n - V) : j;
        const A* const from = x + i * t.row + at;
        A* const to = out + i * t.out_row + at;
        tall ? plane_tile<A, kTall>(t, from, to) : plane_tile<A, kShort>(t, from, to);
        if (feed.rows) feed_rows(feed.at_once);
      }
      i += height;
    }
  }

  // The taps of channel c in one phase, and its weights.
  PlaneTile<A> tile(i64 c, i64 phase) {
    const i64 e = list.index(g.set_of_channel(c, 0), phase);
    if (c * g.phases() + phase != packed) {
      packed = c * g.phases() + phase;
      const int* const slot = list.slot + e * g.p.taps;
      const T* const from = w + c * g.p.taps;
      for (i64 i = 0; i < g.p.taps; ++i) weights[i] = to_acc(from[slot[i]]);
    }
    return {list.begin(e), list.end(e), stage.row, 0, weights, bias ? to_acc(bias[c]) : A(0), false};
  }

  // Some rows of a plane. Planes of a channel follow each other for some images.
  struct Piece {
    i64 c, n, i0, height, n0, n1;  // n0, n1: those images
    const T* from;                 // the plane
  };
  void set(Piece& s) const {
    s.height = smaller(strip, g.rows.grid - s.i0);
    s.from = src + s.n * g.src.n + s.c * g.src.c;
  }
  Piece first_piece(i64 plane) const {
    Piece s{};
    s.n0 = plane / (images * g.p.co) * images;
    s.n1 = smaller(s.n0 + images, g.p.n);
    plane -= s.n0 * g.p.co;
    s.c = plane / (s.n1 - s.n0);
    s.n = s.n0 + plane % (s.n1 - s.n0);
    set(s);
    return s;
  }
  Piece next_piece(Piece s) const {
    s.i0 += strip;
    if (s.i0 >= g.rows.grid) {
      s.i0 = 0;
      if (++s.n == s.n1) {
        if (++s.c == g.p.co) s.c = 0, s.n0 = s.n1, s.n1 = smaller(s.n0 + images, g.p.n);
        s.n = s.n0;
      }
    }
    set(s);
    return s;
  }

  void feed_rows(i64 most) {
    if constexpr (kSame) {
      const i64 rows = smaller(most, feed.rows), row = g.src.h;
      copy_rows<A>(feed.to, stage.row, feed.from, row, rows, g.cols.in);
      if (feed.ahead) {
        touch_rows(feed.ahead, row, 0, rows, g.cols.in);
        feed.ahead += rows * row;
      }
      feed.to += rows * stage.row;
      feed.from += rows * row;
      feed.rows -= rows;
    }
  }
  // Begins to stage a piece in another buffer; `ahead`: the piece after it.
  void begin(const Piece& s, A* to, const Piece* ahead) {
    stage.data = to;
    const i64 n = g.cols.in, first = s.i0 + g.rows.lo, rows = s.height + g.halo();
    if (!kSame || g.planes() > 1 || n < V || g.src.w != 1) {
      if (ahead) touch_rows(ahead->from, g.src.h, 0, smaller(strip * g.rows.in_step(), g.rows.in), n * g.src.w);
      feed.rows = 0;
      return stage.fill(s.from, 1, s.i0, s.height);
    }
    const i64 top = smaller(rows, larger(0, -first)), bottom = larger(top, smaller(rows, g.rows.in - first));
    if (strips > 1) {  // else what lies outside was cleared once
      for (i64 u = 0; u < top; ++u) clear(to + u * stage.row, n);
      for (i64 u = bottom; u < rows; ++u) clear(to + u * stage.row, n);
    }
    const i64 skip = ahead ? larger(0, ahead->i0 + g.rows.lo) * g.src.h : 0;
    feed = {to + top * stage.row, s.from + (first + top) * g.src.h, ahead ? ahead->from + skip : nullptr, bottom - top,
            feed_at_once};
  }

#if defined(__AVX512F__)
  // Planes [first, last), in the order of their pieces.
  void direct_planes(i64 first, i64 last) {
    Piece now = first_piece(first), next = now;
    TileWalk t(g.rows.grid, g.cols.grid, kHigh, kLow);
    DirectTile d{};
    for (i64 left = last - first; left > 0; left -= t.at_first()) {
      if (t.at_first()) {
        now = next;
        if (left > 1) next = next_piece(now);
        const PlaneTile<A> k = tile(now.c, 0);
        d = {k.unit, k.end, g.src.h, g.dst.h, k.weights, k.init, past, g.rows.in, g.cols.in, g.rows.lo};
      }
      const bool high = t.height == kHigh, slim = high && !past && t.slim();
      const i64 i = t.top(), j = t.left(slim ? kLanes<float> / 2 : kLanes<float>);
      T *const map_now = map(now), *const to = map_now + i * g.dst.h + j;
      const T* const soon = t.ahead(now.from, next.from, g.src.h, g.rows.in);
      const T* const soon_to = past ? soon : t.ahead(map_now, map(next), g.dst.h, g.rows.grid);
      const auto make = slim   ? direct_tile<kHigh, Slim<float>>
                        : high ? direct_tile<kHigh, Vec<float>>
                               : direct_tile<kLow, Vec<float>>;
      make(d, now.from, i, j, to, soon, soon_to);
      t.advance();
    }
  }
#endif
  T* map(const Piece& s) const { return dst + s.n * g.dst.n + s.c * g.dst.c; }

  void make_piece(const Piece& s, const A* staged) {
    for (i64 f = 0; f < g.phases(); ++f) {
      const i64 fr = f / g.cols.phases(), fc = f % g.cols.phases(), columns = g.cols.places(fc);
      const i64 rows = smaller(s.height, g.rows.places(fr) - s.i0);
      T* to = dst + offset(g.dst, s.n, s.c, s.i0 * g.rows.out_step() + fr, fc);
      PlaneTile<A> t = tile(s.c, f);
      if constexpr (kSame)
        if (direct && rows >= kShort) {
          t.out_row = g.dst.h;
          t.past = past;
          bands(t, staged, to, rows, columns, true);
          continue;
        }
      t.out_row = round_up(columns, V);
      bands(t, staged, made, rows, columns, false);
      for (i64 r = 0; r < rows; ++r, to += g.dst.h * g.rows.out_step())
        write_line<T>(to, g.dst.w * g.cols.out_step(), made + r * t.out_row, columns);
    }
  }

  // Planes [first, last), in the order of their pieces.
  void planes(i64 first, i64 last) {
    i64 left = (last - first) * strips;
    if (left <= 0) return;
    Piece now = first_piece(first), next = now;
    A *staged = buffer[0], *other = buffer[1];
    begin(now, staged, nullptr);
    for (; left > 0; --left) {
      feed_rows(feed.rows);
      if (left > 1) {
        next = next_piece(now);
        const Piece ahead = left > 2 ? next_piece(next) : next;
        begin(next, other, &ahead);
      }
      make_piece(now, staged);
      now = next;
      A* const swap = staged;
      staged = other;
      other = swap;
    }
  }

  void work() {
    find_units(g, list, stage.plane, in_place ? g.src.h : stage.row, in_place);
    for (A* const b : buffer) {
      if (!b) break;
      stage.prepare(b);
    }
    const i64 shares = parallel(g.p) ? g.p.threads : 1, all = g.p.n * g.p.co;
#pragma omp for schedule(static)
    for (i64 s = 0; s < shares; ++s) {
      const i64 first = all * s / shares, last = all * (s + 1) / shares;
#if defined(__AVX512F__)
      if constexpr (__is_same(T, float))
        if (in_place) {
          direct_planes(first, last);
          continue;
        }
#endif
      planes(first, last);
    }
    if (past) stream_fence();
  }
};

// Narrow maps fill vectors better as one long line. Which kernel sums a weight gradient may not depend on the threads.
inline bool in_planes(const Params& p, Pass pass) {
  const bool depthwise = p.groups == p.ci && p.groups == p.co;
  return depthwise && p.layout == Layout::nchw && p.wo >= 16 && p.kernel <= kMostRows &&
         (pass == Pass::bwd_w || p.n * p.ci >= p.threads);
}

template <class T>
int planes_conv(const Params& p, bool backward, const T* src, const T* w, const T* bias, T* dst) {
  const Plan g = make_plan(p, backward);
  Planes<T> job(g, src, w, bias, dst);
  return run_job(job, p);
}

}  // namespace rsdc
}  // namespace
