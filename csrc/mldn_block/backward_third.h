// Backward of version 2's third norm and its 1x1 convolution, which also takes back what they added to the channels.
#pragma once
#include "mldn_block/backward_first.h"
#include "mldn_block/third.h"

namespace {
namespace mldn {

template <class T>
struct ThirdGrad {
  using A = Acc<T>;
  static constexpr i64 V = kLanes<A>, S = kSub<A>;
  const Layers<T>& layers;
  const Block& b;
  Third<T> forward;
  i64 most;  // sub-panels of a panel
  // Shared:
  A* taken;        // [path][blocks of channels][kappa][kRows]: weights with their signs changed
  A* packed;       // [path][blocks of new channels][channel][kRows]
  A* weights;      // [path][chunk][channel][kappa]
  double* norms;   // [path][chunk][kappa][2]
  Finish<A> less;  // of a layer's first norm, [path][channel]: what its inputs' gradients lack
  Finish<A> own;   // of the third norm, [path][kappa]
  // Of a thread:
  SubPanel* subs;
  A *active, *live, *grads, *sums;  // a panel's new channels, activated; gradients of channels, of new channels

  explicit ThirdGrad(const Layers<T>& of) : layers(of), b(of.b), forward(of, 1), most(larger(1, kPanel / S)) {}

  i64 wide() const { return round_up(b.p.kappa, larger(kRows, kSumWide<A>)); }
  i64 unit_weights() const { return b.last * b.p.kappa; }
  void share(Arena& a) {
    if (!b.changes()) return;
    const i64 units = b.p.paths * b.chunks;
    forward.norm.take(a, b.p.paths * b.p.kappa);
    taken = a.take<A>(b.p.paths * forward.rows() * b.p.kappa);
    packed = a.take<A>(b.p.paths * wide() * b.last);
    weights = a.take<A>(units * unit_weights());
    norms = a.take<double>(units * b.p.kappa * 2);
    less.take(a, b.p.paths * b.end);
    own.take(a, b.p.paths * b.p.kappa);
  }
  void own_memory(Arena& a) {
    if (!b.changes()) return;
    subs = a.take<SubPanel>(most);
    active = a.take<A>(most * wide() * S);
    live = a.take<A>(most * kInputs * S);
    grads = a.take<A>(most * wide() * S);
    sums = a.take<A>(b.p.kappa * 2 * V);
    forward.tile = a.take<A>(kRows * S);
  }
  void prepare() {
    if (!b.changes()) return;
    clear(active, most * wide() * S);
    clear(live, most * kInputs * S);
  }
  void pack(i64 l, i64 path) {
    const i64 width = b.width(l), kappa = b.p.kappa;
    A* const to = taken + path * forward.rows() * kappa;
    pack_rows<T>(forward.weight(l, path), width, kappa, kappa, 1, to);
    for (i64 i = 0; i < round_up(width, kRows) * kappa; ++i) to[i] = -to[i];
    pack_rows<T>(forward.weight(l, path), kappa, width, 1, kappa, packed + path * wide() * b.last);
  }

  // The finished gradients g of `count` pixels of a channel with values x, and a copy of them.
  void finish(const T* x, A* g, i64 i, i64 count, A* copy) const {
    const Vec<A> plain = every(less.plain[i]), slope = every(less.slope[i]), mean = every(less.mean[i]);
    for (i64 v = 0; v < S; v += V) {
      const i64 n = count - v;
      Vec<A> d = load_line(g + v, n);
      d -= plain + (load_line(x + v, n) - mean) * slope;
      if (n < V) d = head<A>(d, n);
      store_line<A>(g + v, d, n);
      vstore(copy + v, d);
    }
  }

  void take_back(T* x, T* lost, i64 count, const A* by) const {
    for (i64 v = 0; v < count; v += V) {
      const i64 left = count - v;
      Vec<A> rest = load_line(lost + v, left);
      const Vec<A> s = sum_exactly(load_line(x + v, left), vload(by + v), rest), now = s + rest;
      store_line<T>(x + v, now, left);
      store_line<T>(lost + v, rest - (now - s), left);
    }
  }

  // Sub-panels subs[0, n) of a path: gradients of its channels in `buffer`, of its new ones behind their ReLU to
  // `third`.
  void add(i64 l, i64 path, i64 n, const T* hidden, A* buffer, A* third, A* total) {
    const i64 width = b.width(l), kappa = b.p.kappa, plane = b.pixels;
    const Norm<A> norm = forward.norm.from(path * kappa);
    clear(grads, n * wide() * S);
    for (i64 s = 0; s < n; ++s)
      pack_active<T, false>(hidden + subs[s].image * b.p.paths * kappa * plane + subs[s].pixel, plane, nullptr, kappa,
                            subs[s].count, norm, {}, 0, active + s * wide() * S);
    for (i64 c = 0; c < width; c += kInputs) {
      const i64 channels = smaller(kInputs, width - c);
      for (i64 s = 0; s < n; ++s) {
        const SubPanel& sub = subs[s];
        T* const x = layers.prefix(sub.image, path) + c * plane + sub.pixel;
        A* const g = buffer + sub.image * b.p.paths * b.end * plane + c * plane + sub.pixel;
        for (i64 r = 0; r < channels; ++r)
          finish(x + r * plane, g + r * plane, path * b.end + c + r, sub.count, live + (s * kInputs + r) * S);
        for (i64 r = 0; r < channels; r += kRows) {
          project_fn<A>(sub.count)({kappa, channels - r, S, nullptr, nullptr, false},
                                   taken + (path * forward.rows() + c + r) * kappa, active + s * wide() * S,
                                   forward.tile, sub.count);
          for (i64 i = r; i < smaller(r + kRows, channels); ++i)
            take_back(x + i * plane, forward.losses(path, sub.image, c + i) + sub.pixel, sub.count,
                      forward.tile + (i - r) * S);
        }
        for (i64 k = 0; k < kappa; k += kRows)
          project_tile<A, kRun<A>>({channels, kappa - k, S, nullptr, nullptr, true},
                                   packed + path * wide() * b.last + k * width + c * kRows, live + s * kInputs * S,
                                   grads + (s * wide() + k) * S, S);
      }
      for (i64 k = 0; k < kappa; k += kSumWide<A>)
        for (i64 r = 0; r < channels; r += kRows)
          sum_tile<A>(subs, n, live + r * S, kInputs, active + k * S, wide(), smaller(kRows, channels - r),
                      smaller(kSumWide<A>, kappa - k), total + (c + r) * kappa + k, kappa);
    }
    for (i64 s = 0; s < n; ++s)
      for (i64 k = 0; k < kappa; ++k) {
        const i64 at = subs[s].image * b.p.paths * kappa * plane + k * plane + subs[s].pixel;
        const Vec<A> mean = every(norm.mean[k]), scale = every(norm.scale[k]), beta = every(norm.beta[k]);
        Vec<A> first = vload(sums + k * 2 * V), second = vload(sums + (k * 2 + 1) * V);
        for (i64 v = 0; v < subs[s].count; v += V) {
          const i64 left = subs[s].count - v;
          const Vec<A> d = load_line(hidden + at + v, left) - mean;
          const Vec<A> g = where_positive(vfma(d, scale, beta), vload(grads + (s * wide() + k) * S + v));
          store_line<A>(third + at + v, g, left);
          first += g;
          second = vfma(g, d, second);
        }
        vstore(sums + k * 2 * V, first);
        vstore(sums + (k * 2 + 1) * V, second);
      }
  }

  // hidden, third: the layer's; buffer: all gradients.
  void unit(i64 l, i64 u, const T* hidden, A* buffer, A* third) {
    const i64 path = u / b.chunks, chunk = u % b.chunks, kappa = b.p.kappa;
    A* const total = weights + u * unit_weights();
    clear(total, b.width(l) * kappa);
    clear(sums, kappa * 2 * V);
    i64 count = 0;
    const auto flush = [&] {
      if (count)
        add(l, path, count, hidden + path * kappa * b.pixels, buffer + path * b.end * b.pixels,
            third + path * kappa * b.pixels, total);
      count = 0;
    };
    for (i64 n = b.first_image(chunk); n < b.first_image(chunk + 1); ++n)
      for (i64 i = 0; i < b.pixels; i += S) {
        subs[count++] = {n, i, smaller(S, b.pixels - i)};
        if (count == most) flush();
      }
    flush();
    for (i64 i = 0; i < kappa * 2; ++i)
      norms[u * kappa * 2 + i] = static_cast<double>(rsdc::sum_lanes<A>(vload(sums + i * V)));
  }

  // Gradients of the third norm, and what they take from the gradients of its inputs.
  void merge(i64 l, bool batch, A* gaffine) {
    const i64 kappa = b.p.kappa;
    const double samples = static_cast<double>(b.p.n * b.pixels);
    for (i64 i = 0; i < b.p.paths * kappa; ++i) {
      double beta = 0, gamma = 0;
      for (i64 c = 0; c < b.chunks; ++c) {
        const double* const one = norms + ((i / kappa * b.chunks + c) * kappa + i % kappa) * 2;
        beta += one[0];
        gamma += one[1];
      }
      const double inv = static_cast<double>(forward.norm.inv[i]);
      gamma *= inv;
      gaffine[l * b.p.paths * kappa + i] = static_cast<A>(gamma);
      gaffine[b.outs() + l * b.p.paths * kappa + i] = static_cast<A>(beta);
      own.plain[i] = batch ? static_cast<A>(beta / samples) : A(0);
      own.slope[i] = batch ? static_cast<A>(inv * gamma / samples) : A(0);
      own.mean[i] = forward.norm.mean[i];
    }
  }
  void merge_weights(i64 l, i64 path, T* to) {
    const A* const from = weights + path * b.chunks * unit_weights();
    for (i64 i = 0; i < b.width(l) * b.p.kappa; ++i) {
      A sum = 0;
      for (i64 c = 0; c < b.chunks; ++c) sum += from[c * unit_weights() + i];
      to[b.weight_sfr(l, path) + i] = from_acc<T>(sum);
    }
  }

  // Gradients of the new channels: what came for them, and what came through the third norm, into `third`.
  void join(i64 l, i64 n, i64 path, const T* hidden, const A* buffer, A* third) {
    const i64 to = b.partner(l, path), kappa = b.p.kappa;
    for (i64 k = 0; k < kappa; ++k) {
      const i64 at = ((n * b.p.paths + path) * kappa + k) * b.pixels, i = path * kappa + k,
                j = to * b.end + b.width(l) + k;
      const A* const given = buffer + (n * b.p.paths * b.end + j) * b.pixels;
      const Vec<A> plain = every(less.plain[j]), slope = every(less.slope[j]), mean = every(less.mean[j]),
                   scale = every(forward.norm.scale[i]), from = every(own.mean[i]), by = every(own.slope[i]),
                   off = every(own.plain[i]);
      for (i64 v = 0; v < b.pixels; v += V) {
        const i64 left = b.pixels - v;
        const Vec<A> x = load_line(hidden + at + v, left);
        const Vec<A> direct = load_line(given + v, left) - (plain + (x - mean) * slope);
        const Vec<A> through = (load_line(third + at + v, left) - off - (x - from) * by) * scale;
        store_line<A>(third + at + v, direct + through, left);
      }
    }
  }
};

}  // namespace mldn
}  // namespace
