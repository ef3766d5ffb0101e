#include "multi_dwconv2d/cuda_launch.h"
#include "multi_dwconv2d/cuda_tile_grad.cuh"

namespace lk::multi_dwconv2d::cuda {
namespace {

// As many multiples of four as make pieces of `size` equally large, at most `most` each.
int piece(int size, int most) {
  const int pieces = static_cast<int>(ceil_div(size, most));
  return static_cast<int>(ceil_div(ceil_div(size, pieces), kTileEdge)) * kTileEdge;
}

// The tile of outputs, as many images in it as keep the block's threads busy and fit.
template <class K>
bool fit(TileArgs& a, bool nhwc) {
  Tile& t = a.tile;
  t.columns = piece(a.wo, nhwc ? 16 : 32);
  t.rows = nhwc ? 4 * (a.ho > 4 ? 2 : 1) : piece(a.ho, 16);
  const int pieces = nhwc ? K::kThreads / kWarp : K::kThreads;
  const int each = t.rows / kTileEdge * (t.columns / kTileEdge);
  t.images = pieces / each < 1 ? 1 : pieces / each;
  if (t.images > a.n) t.images = a.n;
  const int quads = K::Plan::columns_of(t) / 4, rows = K::Plan::rows_of(t);
  const i64 across = quads > 0 && !nhwc ? quads : 1;
  auto fits = [&] {
    const i64 lines = static_cast<i64>(t.images) * rows;
    return K::shared_bytes(t) <= kMaxShared && lines * across * (across - 1) < 65536 && lines * (rows - 1) < 65536;
  };
  while (t.images > 1 && !fits()) --t.images;
  a.by_quads = Divider::of(static_cast<int>(across));
  a.by_rows = Divider::of(rows);
  return fits();
}

i64 tiles_of(const TileArgs& a) {
  return ceil_div(a.n, a.tile.images) * ceil_div(a.ho, a.tile.rows) * ceil_div(a.wo, a.tile.columns);
}

int units_of(const TileArgs& a, bool nhwc) { return static_cast<int>(nhwc ? ceil_div(a.c, kWarp) : a.c); }

template <class K>
int fit_and_run(TileArgs& a, bool nhwc, void* stream) {
  if (!fit<K>(a, nhwc)) return kUnsupported;
  return launch<K>("tile_conv", {tiles_of(a), units_of(a, nhwc)}, K::shared_bytes(a.tile), stream, a);
}

bool aligned4(const Strides& s, DType dtype, const void* p) {
  const std::uintptr_t bytes = dtype == DType::f32 ? 16 : 8;
  return s.n % 4 == 0 && s.c % 4 == 0 && s.h % 4 == 0 && reinterpret_cast<std::uintptr_t>(p) % bytes == 0;
}

// Branches first..last of p, which read the same channels: the forward, or the input's gradient from g.
int conv(const Params& p, void* stream, bool back, int first, int last, const void* in, const void* w, const void* bias,
         void* out) {
  TileArgs a{};
  a.in = in;
  a.w = w;
  a.bias = bias;
  a.out = out;
  a.n = static_cast<int>(p.n);
  a.c = static_cast<int>(p.branches[first].channels);
  a.h = static_cast<int>(back ? p.ho : p.h);
  a.wide = static_cast<int>(back ? p.wo : p.w);
  a.ho = static_cast<int>(back ? p.h : p.ho);
  a.wo = static_cast<int>(back ? p.w : p.wo);
  a.in_s = back ? p.y : p.x;
  a.out_s = back ? p.x : p.y;
  a.dtype = p.dtype;
  a.turned = back;
  a.vectors = p.layout == Layout::nchw && aligned4(a.in_s, p.dtype, in) && aligned4(a.out_s, p.dtype, out);
  int most = 1;
  for (int m = first; m <= last; ++m) {
    a.branch[m] = p.branches[m];
    most = p.branches[m].kernel > most ? static_cast<int>(p.branches[m].kernel) : most;
  }
  a.tile.reach = most / 2;
  const Branch *b = p.branches, &head = b[first];
  if (p.combine == Combine::add) {
    a.step[a.steps++] = {most, first, last, true, false, true, true, head.in_start, head.out_start};
  } else {
    for (int q = first; q <= last; ++q) {
      const bool cumulative = p.combine == Combine::cumulative, begin = q == first, end = q == last;
      const int m = back && cumulative ? last - (q - first) : q;  // a gradient meets its branch and all before it
      const int k = static_cast<int>(b[m].kernel);
      if (back)
        a.step[a.steps++] = {k, m, m, true, cumulative && !begin, begin, end, b[m].out_start, head.in_start};
      else
        a.step[a.steps++] = {k, m, m, begin, false, begin || !cumulative, true, head.in_start, b[m].out_start};
    }
  }
  const bool nhwc = p.layout == Layout::nhwc, small = most <= 3;
  if (nhwc)
    return small ? fit_and_run<TileConv<true, 1, 3>>(a, true, stream)
                 : fit_and_run<TileConv<true, 1, 7>>(a, true, stream);
  if (!back && p.stride_h == 2)
    return small ? fit_and_run<TileConv<false, 2, 3>>(a, false, stream)
                 : fit_and_run<TileConv<false, 2, 7>>(a, false, stream);
  return small ? fit_and_run<TileConv<false, 1, 3>>(a, false, stream)
               : fit_and_run<TileConv<false, 1, 7>>(a, false, stream);
}

// What all branches of a weight gradient share; channels are the first branch's.
TileGradArgs grad_args(const Params& p, const void* g, const void* x) {
  TileGradArgs a{};
  a.x.in = x;
  a.x.n = static_cast<int>(p.n);
  a.x.h = static_cast<int>(p.h);
  a.x.wide = static_cast<int>(p.w);
  a.x.ho = static_cast<int>(p.ho);
  a.x.wo = static_cast<int>(p.wo);
  a.x.in_s = p.x;
  a.x.out_s = p.y;
  a.x.dtype = p.dtype;
  a.x.vectors = p.layout == Layout::nchw && aligned4(p.x, p.dtype, x) && aligned4(p.y, p.dtype, g);
  a.g = g;
  i64 most = 3;
  for (i64 m = 0; m < p.num_branches; ++m) most = p.branches[m].kernel > most ? p.branches[m].kernel : most;
  a.x.tile.reach = static_cast<int>(most / 2);  // of all, so that all have the same tiles and parts
  return a;
}

// Tiles of a channel and how many a block takes. The largest kernel's, whatever the branch.
template <bool kNhwc, int S>
bool fit_grad(const Params& p, TileGradArgs& a) {
  if (!fit<TileGrad<kNhwc, S, 7>>(a.x, kNhwc)) return false;
  const i64 tiles = tiles_of(a.x), units = kNhwc ? ceil_div(p.c, kWarp) : p.c, parts = kPrograms / units;
  if (tiles > 0x7fffffff) return false;
  a.tiles = static_cast<int>(tiles);
  a.tiles_a_block = static_cast<int>(share(tiles, parts, tiles));
  return true;
}

bool fit_grad(const Params& p, TileGradArgs& a) {
  if (p.layout == Layout::nhwc) return fit_grad<true, 1>(p, a);
  return p.stride_h == 2 ? fit_grad<false, 2>(p, a) : fit_grad<false, 1>(p, a);
}

template <bool kNhwc, int S, int K>
int run_grad(const TileGradArgs& a, void* stream) {
  using G = TileGrad<kNhwc, S, K>;
  return launch<G>("tile_grad", {ceil_div(a.tiles, a.tiles_a_block), units_of(a.x, kNhwc)}, G::shared_bytes(a.x.tile),
                   stream, a);
}

template <bool kNhwc, int S>
int run_grad(const TileGradArgs& a, i64 kernel, void* stream) {
  if (kernel <= 3) return run_grad<kNhwc, S, 3>(a, stream);
  return kernel == 5 ? run_grad<kNhwc, S, 5>(a, stream) : run_grad<kNhwc, S, 7>(a, stream);
}

}  // namespace

i64 tile_parts(const Params& p) {
  TileGradArgs a = grad_args(p, nullptr, nullptr);
  return fit_grad(p, a) ? ceil_div(a.tiles, a.tiles_a_block) : 1;
}

int tile_grad(const Params& p, void* stream, const void* g, const void* x, void* work) {
  TileGradArgs a = grad_args(p, g, x);
  if (!fit_grad(p, a)) return kUnsupported;
  a.work = static_cast<float*>(work);
  a.weights = weights_of(p);
  const int count = static_cast<int>(p.num_branches), together = p.combine == Combine::add ? count : 1;
  for (int m = 0; m < count; m += together) {
    const Branch& b = p.branches[m];
    i64 kernel = 0;
    for (a.branches = 0; a.branches < together; ++a.branches) {
      a.x.branch[a.branches] = p.branches[m + a.branches];
      if (p.branches[m + a.branches].kernel > kernel) kernel = p.branches[m + a.branches].kernel;
    }
    a.x.c = static_cast<int>(b.channels);
    a.x_c = b.in_start;
    a.g_c = b.out_start;
    a.g_slab = b.channels;
    a.slabs = p.combine == Combine::cumulative ? count - m : 1;  // a branch meets its own sum and all later ones
    const int error = p.layout == Layout::nhwc ? run_grad<true, 1>(a, kernel, stream)
                      : p.stride_h == 2        ? run_grad<false, 2>(a, kernel, stream)
                                               : run_grad<false, 1>(a, kernel, stream);
    if (error) return error;
  }
  return 0;
}

bool tile_takes(const Params& p, Pass pass) {
  if (p.dtype == DType::f64 || p.stride_h != p.stride_w || p.num_branches > kMaxSteps) return false;
  if (p.stride_h != 1 && (p.stride_h != 2 || p.layout == Layout::nhwc || pass == Pass::bwd_x)) return false;
  for (i64 m = 0; m < p.num_branches; ++m) {
    const Branch& b = p.branches[m];
    if (b.kernel > 7 || (b.dilation != 1 && b.kernel > 1)) return false;
    if ((p.layout == Layout::nhwc ? ceil_div(b.channels, kWarp) : b.channels) > 65535) return false;
  }
  return true;
}

int tile_conv(const Params& p, void* stream, bool back, const void* in, const void* w, const void* bias, void* out) {
  const bool split = p.branches[0].channels != p.c;
  if (!split) return conv(p, stream, back, 0, static_cast<int>(p.num_branches) - 1, in, w, bias, out);
  for (int m = 0; m < p.num_branches; ++m)
    if (const int error = conv(p, stream, back, m, m, in, w, bias, out)) return error;
  return 0;
}

}  // namespace lk::multi_dwconv2d::cuda
