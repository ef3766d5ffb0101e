// Weight gradient of dense groups: input channels in the vector, sums over pixels in registers.
#pragma once
#include "rsdc2d/grad_tile.h"

namespace {
namespace rsdc {

// Sums are formed in two stages, in an order that depends on shapes alone: over a chunk of pixels that fits the
// first-level cache, then over the chunks.
constexpr i64 kChunkBytes = 24 << 10, kGradBytes = 512 << 10, kMostGradBytes = 16 << 20;

// Maps with their channels cut into blocks: [block][image][plane][row][pixel][channel of the block]. With Pairs, two
// images of the input are one here.
struct Blocks {
  i64 wide, count, image, elements;  // channels of a block, blocks of a group; elements of an image, of a block
};

template <class T, bool Pairs>
struct DenseGrad {
  using A = Acc<T>;
  static constexpr int V = kLanes<A>;
  static constexpr i64 kImages = Pairs ? 2 : 1;
  const Plan& g;
  const T *grad, *x;
  T* gw;
  bool one_set;
  i64 images, strip, chunk_images, chunk;  // images and grid rows staged, and multiplied, at a time
  i64 height, pitch;                       // of staged inputs, in rows and pixels
  Blocks in, out;
  TermList list;
  A *inputs, *grads, *totals, *part;

  DenseGrad(const Plan& plan, const T* gradient, const T* input, T* to)
      : g(plan), grad(gradient), x(input), gw(to), one_set(plan.one_set_a_group()) {
    in.wide = plan.sources <= V && !Pairs ? V : kVectors * V;
    in.count = ceil_div(plan.sources, in.wide);
    out.count = ceil_div(plan.outputs, kPixels);
    out.wide = ceil_div(plan.outputs, out.count);
    pitch = g.pitch();
    cut();
    height = strip + g.halo();
    in.image = g.planes() * height * pitch * in.wide;
    in.elements = images * in.image + (g.cols.before + g.cols.gap) * in.wide;
    out.image = strip * g.cols.grid * out.wide;
    out.elements = images * out.image;
    inputs = grads = totals = part = nullptr;
  }

  i64 total() const { return g.p.groups * out.count * out.wide * in.count * g.p.taps * in.wide; }
  void cut() {
    const i64 size = static_cast<i64>(sizeof(A)), in_row = g.planes() * pitch * in.wide,
              out_row = g.cols.grid * out.wide;
    const i64 row = (in_row * in.count + out_row * out.count) * g.p.groups * size;
    const i64 most = smaller(kMostGradBytes, larger(kGradBytes, 2 * total() * size));
    strip = smaller(g.rows.grid, larger(larger(1, g.halo()), most / row - g.halo()));
    strip = ceil_div(g.rows.grid, ceil_div(g.rows.grid, strip));
    images = strip < g.rows.grid ? 1 : larger(1, smaller(paired(Pairs, g.p.n), most / (row * (strip + g.halo()))));
    const i64 fit = larger(1, kChunkBytes / ((in_row + out_row) * size));
    chunk = smaller(strip, fit);
    chunk_images = chunk < strip ? 1 : larger(1, smaller(images, fit / strip));
  }
  void share(Arena& a) {
    list = make_terms(g, a, height * pitch * in.wide, pitch * in.wide, in.wide);
    inputs = a.take<A>(g.p.groups * in.count * in.elements);
    grads = a.take<A>(g.p.groups * out.count * out.elements);
    totals = a.take<A>(total());
  }
  void own(Arena& a) { part = a.take<A>(larger(in.wide, out.wide) * larger(g.cols.plane, g.cols.grid)); }

  static void read(A* to, const T* from, [[maybe_unused]] const T* second, i64 step, i64 n) {
    if constexpr (Pairs)
      read_pairs(to, from, second, step, n);
    else
      read_line<T>(to, from, step, n);
  }
  // A line of n pixels of `count` channels to pixels of `wide` channels; `image`: from there to the second image's
  // line, negative if there is none.
  void line(A* to, i64 wide, const T* from, i64 image, i64 channel, i64 pixel, i64 n, i64 count, const T* next) {
    const auto second = [image](const T* first) { return image < 0 ? nullptr : first + image; };
    if (g.p.layout == Layout::nhwc) {
      if (next) touch_pixels<0>(next, pixel, n, count);
      for (i64 j = 0; j < n; ++j, from += pixel) read(to + j * wide, from, second(from), 1, count);
      return;
    }
    if constexpr (sizeof(T) == sizeof(A))
      if (pixel == 1) return transpose(to, wide, from, channel, count, n);
    for (i64 c = 0; c < count; ++c, from += channel) read(part + c * n, from, second(from), pixel, n);
    transpose(to, wide, part, n, count, n);
  }
  i64 to_second(i64 n, i64 image) const { return Pairs && n + 1 < g.p.n ? image : -1; }

  void fill_inputs(i64 block, i64 image, i64 n, i64 i0, i64 rows) {
    const i64 first = block % in.count * in.wide, count = smaller(in.wide, g.sources - first);
    const T* const map = x + n * g.src.n + (block / in.count * g.sources + first) * g.src.c;
    A* const to = inputs + block * in.elements + image * in.image + g.cols.before * in.wide;
    for (i64 q = 0; q < g.planes(); ++q) {
      const i64 pr = q / g.cols.planes(), pc = q % g.cols.planes(), columns = g.cols.elements(pc);
      for (i64 u = 0; u < rows + g.halo(); ++u) {
        const i64 i = i0 + g.rows.lo + u;
        A* const row = to + (q * height + u) * pitch * in.wide;
        if (i < 0 || i >= g.rows.elements(pr)) {
          clear(row, columns * in.wide);
          continue;
        }
        const T* const from = map + (i * g.rows.in_step() + pr) * g.src.h + pc * g.src.w;
        line(row, in.wide, from, to_second(n, g.src.n), g.src.c, g.cols.in_step() * g.src.w, columns, count,
             i + 1 < g.rows.elements(pr) ? from + g.rows.in_step() * g.src.h : nullptr);
      }
    }
  }
  void fill_grads(i64 block, i64 image, i64 n, i64 i0, i64 rows) {
    const i64 first = block % out.count * out.wide, count = smaller(out.wide, g.outputs - first);
    const T* const map = grad + n * g.dst.n + (block / out.count * g.outputs + first) * g.dst.c;
    A* const to = grads + block * out.elements + image * out.image;
    for (i64 i = 0; i < rows; ++i)
      line(to + i * g.cols.grid * out.wide, out.wide, map + (i0 + i) * g.dst.h, to_second(n, g.dst.n), g.dst.c, g.dst.w,
           g.cols.grid, count, i + 1 < rows ? map + (i0 + i + 1) * g.dst.h : nullptr);
  }

  // One tap of one block of outputs with one block of inputs, over a chunk.
  void add_one_set(const Term& t, const A* in_at, const A* out_at, i64 i0, i64 rows, i64 count, A* total) const {
    const i64 top = larger(0, -(i0 + t.down)), bottom = smaller(rows, g.rows.plane - t.down - i0);
    const i64 left = larger(0, -t.across), right = smaller(g.cols.grid, g.cols.plane - t.across);
    if (top >= bottom || left >= right) return;
    const GradTile<A> tile{count,     bottom - top,    right - left,           in.image,
                           out.image, pitch * in.wide, g.cols.grid * out.wide, in.count * g.p.taps * in.wide};
    in_at += t.at + top * tile.in_row + left * in.wide;
    out_at += top * tile.out_row + left * out.wide;
    grad_fn<A, Pairs>(out.wide, in.wide)(tile, in_at, out_at, total + t.slot * in.wide);
  }

  void multiply(i64 pair, i64 i0, i64 rows, i64 count) {
    const i64 ib = pair % in.count, ob = pair / in.count % out.count, group = pair / in.count / out.count;
    const A* const in_block = inputs + (group * in.count + ib) * in.elements + g.cols.before * in.wide;
    const A* const out_block = grads + (group * out.count + ob) * out.elements;
    A* const total = totals + ((group * out.count + ob) * out.wide * in.count + ib) * g.p.taps * in.wide;
    for (i64 m = 0; m < count; m += chunk_images)
      for (i64 i = 0; i < rows; i += chunk) {
        const i64 c = smaller(chunk_images, count - m), r = smaller(chunk, rows - i);
        const A* const in_at = in_block + m * in.image + i * pitch * in.wide;
        const A* const out_at = out_block + m * out.image + i * g.cols.grid * out.wide;
        if (one_set) {
          const i64 set = g.set_of_channel(group, 0);
          const Term* const terms = list.terms(set, 0);
          for (i64 e = 0; e < list.count[set]; ++e) add_one_set(terms[e], in_at, out_at, i0 + i, r, c, total);
          continue;
        }
        if constexpr (!Pairs)
          for (i64 o = 0; o < smaller(out.wide, g.outputs - ob * out.wide); ++o) {
            const i64 set = g.set_of_channel(group, ob * out.wide + o), in_row = pitch * in.wide;
            const GradTile<A> tile{c, r, g.cols.grid, in.image, out.image, in_row, g.cols.grid * out.wide, out.wide};
            add_taps<A>(tile, list.terms(set, 0), list.count[set], in.wide, in_at, out_at + o,
                        total + o * in.count * g.p.taps * in.wide);
          }
      }
  }

  // totals [group][output][block of inputs][tap][input of the block] to [output][input][tap].
  void finish(i64 o) {
    const i64 group = o / g.outputs, row = group * out.count * out.wide + o % g.outputs;
    for (i64 c = 0; c < g.sources; ++c)
      for (i64 t = 0; t < g.p.taps; ++t)
        gw[(o * g.sources + c) * g.p.taps + t] =
            from_acc<T>(totals[((row * in.count + c / in.wide) * g.p.taps + t) * in.wide + c % in.wide]);
  }

  void work() {
    const i64 ins = g.p.groups * in.count, outs = g.p.groups * out.count;
#pragma omp for schedule(static)
    for (i64 b = 0; b < ins; ++b) clear(inputs + b * in.elements, in.elements);
#pragma omp for schedule(static)
    for (i64 b = 0; b < outs; ++b) {
      clear(grads + b * out.elements, out.elements);
      clear(totals + b * (total() / outs), total() / outs);
    }
    for (i64 n = 0; n < g.p.n; n += images * kImages)
      for (i64 i0 = 0; i0 < g.rows.grid; i0 += strip) {
        const i64 count = smaller(images, paired(Pairs, g.p.n - n)), rows = smaller(strip, g.rows.grid - i0);
#pragma omp for schedule(static) nowait
        for (i64 e = 0; e < ins * count; ++e) fill_inputs(e / count, e % count, n + e % count * kImages, i0, rows);
#pragma omp for schedule(static)
        for (i64 e = 0; e < outs * count; ++e) fill_grads(e / count, e % count, n + e % count * kImages, i0, rows);
#pragma omp for schedule(static)
        for (i64 e = 0; e < outs * in.count; ++e) multiply(e, i0, rows, count);
      }
#pragma omp for schedule(static)
    for (i64 o = 0; o < g.p.co; ++o) finish(o);
  }
};

template <class T>
int dense_grad(const Params& p, const T* grad, const T* x, T* gw) {
  const Plan g = make_plan(p, false);
  if constexpr (kPairs<T>)
    if (has_pairs() && g.one_set_a_group() && p.n > 1) {
      DenseGrad<T, true> job(g, grad, x, gw);
      return run_job(job, p);
    }
  DenseGrad<T, false> job(g, grad, x, gw);
  return run_job(job, p);
}

}  // namespace rsdc
}  // namespace
