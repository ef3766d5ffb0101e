// Backward through the second convolution: gradients of its weights, and of its inputs behind their ReLU, with the two
// sums that the norm's backward needs.
#pragma once
#include "mldn_block/layer.h"

namespace {
namespace mldn {

// Taps whose products are summed in one go.
#if defined(__AVX512F__)
template <class A>
constexpr i64 kTaps = sizeof(A) == 8 ? 2 : 6;
#else
template <class A>
constexpr i64 kTaps = 2;
#endif

// total[m][r][lane] += x[at[m] + i] * g[r][i] over `vectors` vectors.
template <class A, int M>
void line_sums(i64 vectors, i64 pitch, const Term* at, const A* x, const A* g, A* total) {
  constexpr int V = kLanes<A>;
  Vec<A> acc[M][kRows];
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) acc[m][r] = vload(total + (m * kRows + r) * V);
  for (i64 i = 0; i < vectors; ++i, x += V, g += V) {
    Vec<A> k[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      k[r] = vload(g + r * pitch);
      LK_KEEP(k[r]);
    }
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      Vec<A> one = vload(x + at[m].at);
      LK_KEEP(one);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) acc[m][r] = vfma(one, k[r], acc[m][r]);
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) vstore(total + (m * kRows + r) * V, acc[m][r]);
}

template <class A>
void all_line_sums(i64 vectors, i64 pitch, const Term* at, i64 n, const A* x, const A* g, A* total) {
  using Fn = void (*)(i64, i64, const Term*, const A*, const A*, A*);
  constexpr i64 most = kTaps<A>;
  static constexpr Fn fn[] = {nullptr,
                              line_sums<A, 1>,
                              line_sums<A, 2>,
                              line_sums<A, smaller(3, most)>,
                              line_sums<A, smaller(4, most)>,
                              line_sums<A, smaller(5, most)>,
                              line_sums<A, smaller(6, most)>};
  for (i64 pieces = ceil_div(n, most); pieces > 0; --pieces) {
    const i64 m = ceil_div(n, pieces);
    fn[m](vectors, pitch, at, x, g, total);
    at += m;
    total += m * kRows * kLanes<A>;
    n -= m;
  }
}

// A channel's gradient when all its readers have added to it: d - plain - (x - mean) * slope.
template <class A>
struct Finish {
  A *plain, *slope, *mean;
  void take(Arena& a, i64 n) {
    plain = a.take<A>(n);
    slope = a.take<A>(n);
    mean = a.take<A>(n);
  }
};

template <class T>
struct SecondGrad {
  using A = Acc<T>;
  static constexpr i64 V = kLanes<A>;
  const Layers<T>& layers;
  const Block& b;
  i64 blocks;  // of kRows inputs, in a group
  // Shared:
  A* packed;  // [path][group][block][output][tap][kRows]
  A* zeros;
  Term* term;
  i64* count;
  Finish<A> finish;        // [path that reads][kappa]
  A* weights;              // [path][chunk][kappa][input][tap]
  double *norms, *biases;  // [path][chunk][mid][2], [path][chunk][kappa]
  // Of a thread:
  A *staged, *made, *live, *totals, *sums, *bias_sums;

  explicit SecondGrad(const Layers<T>& of) : layers(of), b(of.b), blocks(ceil_div(b.inputs(), kRows)) {}

  i64 filter() const { return b.inputs() * b.p.taps; }
  i64 block() const { return b.outputs() * b.p.taps * kRows; }
  i64 lane_totals() const { return b.p.kappa * blocks * b.p.taps * kRows * V; }
  void share(Arena& a) {
    const i64 units = b.p.paths * b.chunks;
    packed = a.take<A>(b.p.paths * b.p.groups * blocks * block());
    zeros = a.take<A>(kRows);
    term = a.take<Term>(b.p.paths * b.sets() * b.p.taps);
    count = a.take<i64>(b.p.paths * b.sets());
    finish.take(a, b.p.paths * b.p.kappa);
    weights = a.take<A>(units * b.p.kappa * filter());
    norms = a.take<double>(units * b.p.mid * 2);
    biases = a.take<double>(units * b.p.kappa);
  }
  void own(Arena& a) {
    staged = a.take<A>(b.outputs() * layers.maps.map);
    made = a.take<A>(kRows * layers.maps.flat);
    live = a.take<A>(kRows * layers.maps.flat);
    totals = a.take<A>(lane_totals());
    sums = a.take<A>(b.p.mid * 2 * V);
    bias_sums = a.take<A>(b.p.kappa * V);
  }
  void prepare() {
    clear(staged, b.outputs() * layers.maps.map);
    clear(live, kRows * layers.maps.flat);
  }

  void pack(i64 l, i64 path) {
    const T* const w = layers.weight3(l, path);
    A* to = packed + path * b.p.groups * blocks * block();
    for (i64 g = 0; g < b.p.groups; ++g)
      for (i64 i = 0; i < b.inputs(); i += kRows)
        for (i64 o = g * b.outputs(); o < (g + 1) * b.outputs(); ++o)
          for (i64 t = 0; t < b.p.taps; ++t)
            for (i64 r = i; r < i + kRows; ++r)
              *to++ = r < b.inputs() ? to_acc(w[o * filter() + r * b.p.taps + t]) : A(0);
    make_terms(b, layers.maps, layers.cells(l, path), true, term + path * b.sets() * b.p.taps, count + path * b.sets());
  }

  // The finished gradients of one of the layer's outputs. d and x: of its maps.
  template <class D>
  void stage(const D* d, const T* x, i64 channel, bool deferred, A* to, A* bias) {
    const Maps<A>& m = layers.maps;
    const Vec<A> plain = every(finish.plain[channel]), slope = every(finish.slope[channel]),
                 mean = every(finish.mean[channel]);
    Vec<A> sum = vload(bias);
    to += m.origin();
    for (i64 i = 0; i < m.h; ++i, to += m.pitch, d += m.w, x += m.w)
      for (i64 j = 0; j < m.w; j += V) {
        const i64 n = m.w - j;
        Vec<A> v = load_line(d + j, n);
        if (deferred) v -= plain + (load_line(x + j, n) - mean) * slope;
        if (n < V) v = head<A>(v, n);
        sum += v;
        store_line<A>(to + j, v, n);
      }
    vstore(bias, sum);
  }

  // Inputs [i, i + kRows) of a group: z and inner are their maps.
  void through(const T* z, A* inner, i64 channel, i64 rows) {
    const Maps<A>& m = layers.maps;
    for (i64 r = 0; r < rows; ++r, z += b.pixels, inner += b.pixels) {
      const i64 c = channel + r, plane = c % b.p.mid;
      const Vec<A> scale = every(layers.norm2.scale[c]), beta = every(layers.norm2.beta[c]),
                   mean = every(layers.norm2.mean[c]);
      A* const total = sums + plane * 2 * V;
      Vec<A> s = vload(total), q = vload(total + V);
      for (i64 i = 0; i < m.h; ++i)
        for (i64 j = 0; j < m.w; j += V) {
          const i64 n = m.w - j, at = r * m.flat + i * m.pitch + j;
          const Vec<A> v = load_line(z + i * m.w + j, n) - mean, u = vfma(v, scale, beta);
          store_line<A>(live + at, relu(u), n);
          const Vec<A> g = where_positive(u, load_line(made + at, n));
          store_line<A>(inner + i * m.w + j, g, n);
          s += g;
          q = vfma(g, v, q);
        }
      vstore(total, s);
      vstore(total + V, q);
    }
  }

  // One chunk of one path. `inner` receives gradients of the norm's outputs; `grad` holds [image] gradients of the
  // path's own outputs, wherever they were appended.
  template <class D>
  void unit(i64 l, i64 u, const D* grad, i64 grad_image, const T* mid, A* inner, bool deferred) {
    const i64 path = u / b.chunks, chunk = u % b.chunks, to = b.partner(l, path), groups = b.p.groups;
    const Maps<A>& m = layers.maps;
    clear(totals, lane_totals());
    clear(sums, b.p.mid * 2 * V);
    clear(bias_sums, b.p.kappa * V);
    for (i64 n = b.first_image(chunk); n < b.first_image(chunk + 1); ++n)
      for (i64 g = 0; g < groups; ++g) {
        for (i64 o = 0; o < b.outputs(); ++o) {
          const i64 k = g * b.outputs() + o;
          stage(grad + n * grad_image + k * b.pixels, layers.prefix(n, to) + (b.width(l) + k) * b.pixels,
                to * b.p.kappa + k, deferred, staged + o * m.map, bias_sums + k * V);
        }
        for (i64 i = 0; i < b.inputs(); i += kRows) {
          const i64 first = path * b.p.mid + g * b.inputs() + i, rows = smaller(kRows, b.inputs() - i);
          const bool each = b.sets() > groups;
          const i64 set = path * b.sets() + b.set_of(g * b.outputs());
          const rsdc::SparseTile<A> tile{b.outputs(),
                                         m.map,
                                         b.p.taps * kRows,
                                         {term + set * b.p.taps, count + set, each ? b.p.taps : 0, each ? 1 : 0},
                                         packed + ((path * groups + g) * blocks + i / kRows) * block(),
                                         zeros,
                                         m.flat,
                                         kLanes<A>,
                                         kLanes<A>};
          convolve<A>(kRows, tile, staged, made, m.vectors());
          const i64 map = (n * b.p.paths * b.p.mid + first) * b.pixels;
          through(mid + map, inner + map, first, rows);
          for (i64 o = 0; o < b.outputs(); ++o) {
            const i64 one = path * b.sets() + b.set_of(g * b.outputs() + o);
            A* const total = totals + ((g * b.outputs() + o) * blocks + i / kRows) * b.p.taps * kRows * V;
            all_line_sums<A>(m.vectors(), m.flat, term + one * b.p.taps, count[one], staged + o * m.map, live, total);
          }
        }
      }
    reduce(u);
  }

  void reduce(i64 u) {
    const i64 path = u / b.chunks;
    A* const w = weights + u * b.p.kappa * filter();
    clear(w, b.p.kappa * filter());
    for (i64 o = 0; o < b.p.kappa; ++o)
      for (i64 i = 0; i < blocks; ++i) {
        const i64 set = path * b.sets() + b.set_of(o);
        const A* const total = totals + (o * blocks + i) * b.p.taps * kRows * V;
        for (i64 t = 0; t < count[set]; ++t)
          for (i64 r = 0; r < kRows && i * kRows + r < b.inputs(); ++r)
            w[o * filter() + (i * kRows + r) * b.p.taps + term[set * b.p.taps + t].slot] =
                rsdc::sum_lanes<A>(vload(total + (t * kRows + r) * V));
      }
    for (i64 i = 0; i < b.p.mid * 2; ++i)
      norms[u * b.p.mid * 2 + i] = static_cast<double>(rsdc::sum_lanes<A>(vload(sums + i * V)));
    for (i64 o = 0; o < b.p.kappa; ++o)
      biases[u * b.p.kappa + o] = static_cast<double>(rsdc::sum_lanes<A>(vload(bias_sums + o * V)));
  }
};

}  // namespace mldn
}  // namespace
