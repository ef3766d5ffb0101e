#include "multi_dwconv2d/cuda_launch.h"
#include "multi_dwconv2d/cuda_mma_grad.cuh"

namespace lk::multi_dwconv2d::cuda {
namespace {

constexpr int kRows = 64, kShared = 32 * 1024;  // of a tile: most rows of one image; bytes, so that blocks overlap

// The branches first..last as kernels of one launch: 3, 5, 7, 3+5 or 3+5+7; 0 for anything else.
int kernels_of(const Params& p, int first, int last) {
  int set = 0;
  for (int m = first; m <= last; ++m) {
    if (p.branches[m].dilation != 1) return 0;
    set = 10 * set + static_cast<int>(p.branches[m].kernel < 10 ? p.branches[m].kernel : 0);
  }
  return set == 3 || set == 5 || set == 7 || set == 35 || set == 357 ? set : 0;
}

// Tiles of a channel: as many images in one as waste the fewest of the rows that four warps take at a time, as long as
// what `bytes(images, rows)` says fits.
template <class Bytes>
MmaTiles tiles_of(const Params& p, i64 ho, i64 wo, const Bytes& bytes) {
  MmaTiles t{};
  t.rows = static_cast<int>(ceil_div(ho, ceil_div(ho, kRows)));
  t.eights = static_cast<int>(ceil_div(wo < kMmaColumns ? wo : kMmaColumns, 8));
  double best = -1;
  for (int images = 1; images <= 16 && images <= p.n; ++images) {
    if (bytes(images, t.rows, t.eights) > kShared) break;
    const int rows = images * t.rows, whole = 4 * kMmaRows;
    const double use = static_cast<double>(rows) / static_cast<double>(ceil_div(rows, whole) * whole);
    if (use > best + 0.02) {
      best = use;
      t.images = images;
    }
  }
  t.across = static_cast<int>(ceil_div(wo, kMmaColumns));
  t.down = static_cast<int>(ceil_div(ho, t.rows));
  const i64 count = t.images ? ceil_div(p.n, t.images) * t.across * t.down : 0;
  t.count = count > 0x7fffffff ? 0 : static_cast<int>(count);
  t.by_rows = Divider::of(t.rows);
  return t;
}

template <class K>
int run(const Params& p, MmaArgs& a, void* stream) {
  auto shape = [](int images, int rows, int eights) { return MmaShape::of(images, rows + 2 * K::kReach, eights + 1); };
  auto bytes = [&](int images, int rows, int eights) {
    const MmaShape s = shape(images, rows, eights);
    return s.exact() ? K::kSlabs * 2 * s.numbers() : kShared + 1;
  };
  MmaTiles& t = a.tiles;
  t = tiles_of(p, a.ho, a.wo, bytes);
  if (!t.count) return kUnsupported;
  a.shape = shape(t.images, t.rows, t.eights);
  const i64 each = static_cast<i64>(t.count) * a.c / kTiles;
  t.a_block = static_cast<int>(each < 1 ? 1 : each > 8 ? 8 : each);
  return launch<K>(K::kSlabs > 1 ? "mma_back" : "mma_conv", {ceil_div(t.count, t.a_block), a.c},
                   bytes(t.images, t.rows, t.eights), stream, a);
}

template <class T>
int by_kernels(const Params& p, int set, bool slabs, MmaArgs& a, void* stream) {
  switch (set) {
    case 3:
      return run<MmaConv<T, 3, 0, 0, false>>(p, a, stream);
    case 5:
      return run<MmaConv<T, 5, 0, 0, false>>(p, a, stream);
    case 7:
      return run<MmaConv<T, 7, 0, 0, false>>(p, a, stream);
    case 35:
      return slabs ? run<MmaConv<T, 3, 5, 0, true>>(p, a, stream) : run<MmaConv<T, 3, 5, 0, false>>(p, a, stream);
    case 357:
      return slabs ? run<MmaConv<T, 3, 5, 7, true>>(p, a, stream) : run<MmaConv<T, 3, 5, 7, false>>(p, a, stream);
  }
  return kUnsupported;
}

// How many numbers of a row can be read or written at once.
int vector_of(const Strides& s, i64 wide, const void* p) {
  const i64 all = s.n | s.c | s.h | wide;
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  if (all % 4 == 0 && address % 8 == 0) return 4;
  return all % 2 == 0 && address % 4 == 0 ? 2 : 1;
}

MmaMap map_of(const Params& p, const Strides& s, const void* at) {
  return {static_cast<const u16*>(at), s, static_cast<int>(p.n), static_cast<int>(p.h), static_cast<int>(p.w),
          vector_of(s, p.w, at)};
}

int conv(const Params& p, void* stream, bool back, int first, int last, const void* in, const void* w, const void* bias,
         void* out) {
  MmaArgs a{};
  a.in = map_of(p, back ? p.y : p.x, in);
  a.w = static_cast<const u16*>(w);
  a.bias = static_cast<const u16*>(bias);
  a.out = static_cast<u16*>(out);
  a.n = static_cast<int>(p.n);
  a.c = static_cast<int>(p.branches[first].channels);
  a.ho = static_cast<int>(p.h);
  a.wo = static_cast<int>(p.w);
  a.out_s = back ? p.x : p.y;
  a.combine = p.combine;
  a.turned = back;
  a.pairs = vector_of(a.out_s, p.w, out) > 1;
  for (int m = first; m <= last; ++m) {
    const Branch& b = p.branches[m];
    a.in_c[m - first] = back ? b.out_start : b.in_start;
    a.out_c[m - first] = back ? b.in_start : b.out_start;
    a.weight_start[m - first] = b.weight_start;
  }
  const bool slabs = back && p.combine == Combine::concat;
  const int set = kernels_of(p, first, last);
  if (p.dtype == DType::bf16) return by_kernels<bf16>(p, set, slabs, a, stream);
  return by_kernels<f16>(p, set, slabs, a, stream);
}

// Tiles of the weight gradient, the same for every kernel, so that all branches have as many parts.
MmaShape x_shape(int images, int rows, int eights, int reach) {
  return MmaShape::of(images, rows + 2 * reach, (eights + 1) / 2 * 2 + 1);
}
MmaShape g_shape(int images, int rows, int eights) { return MmaShape::of(images, rows, (eights + 1) / 2 * 2); }

MmaTiles grad_tiles(const Params& p) {
  MmaTiles t = tiles_of(p, p.ho, p.wo, [](int images, int rows, int eights) {
    const MmaShape x = x_shape(images, rows, eights, 3), g = g_shape(images, rows, eights);
    return x.exact() && g.exact() ? 2 * (x.numbers() + g.numbers()) : kShared + 1;
  });
  const i64 parts = kPrograms / p.c;
  if (t.count) t.a_block = static_cast<int>(share(t.count, parts, t.count));
  return t;
}

template <class T, int K>
int run_grad(MmaGradArgs& a, int c, void* stream) {
  const MmaTiles& t = a.tiles;
  a.x_shape = x_shape(t.images, t.rows, t.eights, K / 2);
  a.g_shape = g_shape(t.images, t.rows, t.eights);
  using G = MmaGrad<T, K>;
  return launch<G>("mma_grad", {ceil_div(t.count, t.a_block), c}, G::shared_bytes(a), stream, a);
}

// Branches first..last, which are added, or one.
int grad(const Params& p, void* stream, int first, int last, const void* g, const void* x, float* work) {
  MmaGradArgs a{};
  const Branch& b = p.branches[first];
  a.x = map_of(p, p.x, x);
  a.g = map_of(p, p.y, g);
  a.x_c = b.in_start;
  a.g_c = b.out_start;
  a.tiles = grad_tiles(p);
  if (!a.tiles.count) return kUnsupported;
  a.work = work;
  a.weights = weights_of(p);
  i64 k = 0;
  for (int m = first; m <= last; ++m) {
    a.branch[a.branches++] = p.branches[m];
    k = p.branches[m].kernel > k ? p.branches[m].kernel : k;
  }
  const int c = static_cast<int>(b.channels);
  if (p.dtype == DType::bf16)
    return k == 3   ? run_grad<bf16, 3>(a, c, stream)
           : k == 5 ? run_grad<bf16, 5>(a, c, stream)
                    : run_grad<bf16, 7>(a, c, stream);
  return k == 3   ? run_grad<f16, 3>(a, c, stream)
         : k == 5 ? run_grad<f16, 5>(a, c, stream)
                  : run_grad<f16, 7>(a, c, stream);
}

}  // namespace

bool mma_takes(const Params& p, Pass pass) {
  if (p.dtype != DType::bf16 && p.dtype != DType::f16) return false;
  if (p.layout != Layout::nchw || p.stride_h != 1 || p.stride_w != 1 || p.c > 65535) return false;
  const int last = static_cast<int>(p.num_branches) - 1;
  if (p.branches[0].channels != p.c) {
    for (int m = 0; m <= last; ++m)
      if (!kernels_of(p, m, m)) return false;
    return true;
  }
  if (last >= kMmaBranches || !kernels_of(p, 0, last)) return false;
  return pass == Pass::fwd || last == 0 || p.combine != Combine::cumulative;
}

int mma_conv(const Params& p, void* stream, bool back, const void* in, const void* w, const void* bias, void* out) {
  if (p.branches[0].channels == p.c)
    return conv(p, stream, back, 0, static_cast<int>(p.num_branches) - 1, in, w, bias, out);
  for (int m = 0; m < p.num_branches; ++m)
    if (const int error = conv(p, stream, back, m, m, in, w, bias, out)) return error;
  return 0;
}

i64 mma_parts(const Params& p) {
  const MmaTiles t = grad_tiles(p);
  return t.count ? ceil_div(t.count, t.a_block) : 1;
}

int mma_grad(const Params& p, void* stream, const void* g, const void* x, void* work) {
  const int last = static_cast<int>(p.num_branches) - 1;
  float* sums = static_cast<float*>(work);
  if (p.combine == Combine::add) return grad(p, stream, 0, last, g, x, sums);
  for (int m = 0; m <= last; ++m)
    if (const int error = grad(p, stream, m, m, g, x, sums)) return error;
  return 0;
}

}  // namespace lk::multi_dwconv2d::cuda
