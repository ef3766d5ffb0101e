#include "multi_dwconv2d/cuda_launch.h"
#include "multi_dwconv2d/cuda_tile.cuh"

namespace lk::multi_dwconv2d::cuda {
namespace {

// As many multiples of four as make pieces of `size` equally large, at most `most` each.
int piece(int size, int most) {
  const int pieces = static_cast<int>(ceil_div(size, most));
  return static_cast<int>(ceil_div(ceil_div(size, pieces), kTileEdge)) * kTileEdge;
}

template <class K>
int run(TileArgs& a, int units, void* stream) {
  const Tile& t = a.tile;
  const i64 tiles = ceil_div(a.n, t.images) * ceil_div(a.ho, t.rows) * ceil_div(a.wo, t.columns);
  a.by_quads = Divider::of(K::Plan::columns_of(t) / 4 > 0 ? K::Plan::columns_of(t) / 4 : 1);
  a.by_rows = Divider::of(K::Plan::rows_of(t));
  return launch<K>("tile_conv", {tiles, units}, K::shared_bytes(t), stream, a);
}

// Images a block: as many as keep its threads busy and fit.
template <class K>
bool fit(Tile& t, int n, int pieces) {
  const int each = t.rows / kTileEdge * (t.columns / kTileEdge);
  t.images = pieces / each < 1 ? 1 : pieces / each;
  if (t.images > n) t.images = n;
  while (t.images > 1 && K::shared_bytes(t) > kMaxShared) --t.images;
  return K::shared_bytes(t) <= kMaxShared;
}

template <class K>
int fit_and_run(TileArgs& a, bool nhwc, void* stream) {
  Tile& t = a.tile;
  t.columns = piece(a.wo, nhwc ? 16 : 32);
  t.rows = nhwc ? 4 * (a.ho > 4 && t.columns <= 16 ? 2 : 1) : piece(a.ho, 16);
  if (!fit<K>(t, a.n, nhwc ? K::kThreads / kWarp : K::kThreads)) return kUnsupported;
  const i64 units = nhwc ? ceil_div(a.c, kWarp) : a.c;
  return units > 65535 ? kUnsupported : run<K>(a, static_cast<int>(units), stream);
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

}  // namespace

bool tile_takes(const Params& p, Pass pass) {
  if (p.dtype == DType::f64 || p.stride_h != p.stride_w || p.num_branches > kMaxSteps) return false;
  if (p.stride_h != 1 && (p.stride_h != 2 || p.layout == Layout::nhwc || pass != Pass::fwd)) return false;
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
