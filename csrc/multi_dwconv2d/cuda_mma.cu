#include "multi_dwconv2d/cuda_launch.h"
#include "multi_dwconv2d/cuda_mma.cuh"

namespace lk::multi_dwconv2d::cuda {
namespace {

constexpr int kRows = 64, kShared = 32 * 1024;  // of a tile: most rows of one image; bytes, so that blocks overlap
constexpr i64 kTiles = 2048;                    // blocks take more than one tile of a channel beyond so many tiles

// The branches first..last as kernels of one launch: 3, 5, 7, 3+5 or 3+5+7; 0 for anything else.
int kernels_of(const Params& p, int first, int last) {
  int set = 0;
  for (int m = first; m <= last; ++m) {
    if (p.branches[m].dilation != 1) return 0;
    set = 10 * set + static_cast<int>(p.branches[m].kernel < 10 ? p.branches[m].kernel : 0);
  }
  return set == 3 || set == 5 || set == 7 || set == 35 || set == 357 ? set : 0;
}

template <class K>
int run(MmaArgs& a, int units, void* stream) {
  const int eights = (a.wo < kMmaColumns ? a.wo + 7 : kMmaColumns) / 8, groups = 2 * (eights + 1);
  a.rows = static_cast<int>(ceil_div(a.ho, ceil_div(a.ho, kRows)));
  const int lines = a.rows + 2 * K::kReach;
  // As many images as waste the fewest of the rows that four warps take at a time.
  double best = 0;
  MmaArgs tried = a;
  for (int images = 1; images <= 16 && images <= a.n; ++images) {
    tried.images = images;
    const i64 items = static_cast<i64>(images) * lines * groups;
    if (K::shared_bytes(tried) > kShared || items * (groups - 1) >= 65536 || items * (lines - 1) / groups >= 65536)
      break;
    const int rows = images * a.rows, whole = kMmaRows * K::kWarps;
    const double use = static_cast<double>(rows) / static_cast<double>(ceil_div(rows, whole) * whole);
    if (use > best + 0.02) {
      best = use;
      a.images = images;
    }
  }
  if (!a.images) return kUnsupported;
  a.across = static_cast<int>(ceil_div(a.wo, kMmaColumns));
  a.down = static_cast<int>(ceil_div(a.ho, a.rows));
  const i64 tiles = ceil_div(a.n, a.images) * a.across * a.down;
  if (tiles > 0x7fffffff) return kUnsupported;
  a.tiles = static_cast<int>(tiles);
  const i64 each = tiles * units / kTiles;
  a.tiles_a_block = static_cast<int>(each < 1 ? 1 : each > 8 ? 8 : each);
  a.by_rows = Divider::of(a.rows);
  a.by_lines = Divider::of(lines);
  a.by_groups = Divider::of(groups);
  return launch<K>(K::kSlabs > 1 ? "mma_back" : "mma_conv", {ceil_div(tiles, a.tiles_a_block), units},
                   K::shared_bytes(a), stream, a);
}

template <class T>
int by_kernels(int set, bool slabs, MmaArgs& a, int units, void* stream) {
  switch (set) {
    case 3:
      return run<MmaConv<T, 3, 0, 0, false>>(a, units, stream);
    case 5:
      return run<MmaConv<T, 5, 0, 0, false>>(a, units, stream);
    case 7:
      return run<MmaConv<T, 7, 0, 0, false>>(a, units, stream);
    case 35:
      return slabs ? run<MmaConv<T, 3, 5, 0, true>>(a, units, stream)
                   : run<MmaConv<T, 3, 5, 0, false>>(a, units, stream);
    case 357:
      return slabs ? run<MmaConv<T, 3, 5, 7, true>>(a, units, stream)
                   : run<MmaConv<T, 3, 5, 7, false>>(a, units, stream);
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

int conv(const Params& p, void* stream, bool back, int first, int last, const void* in, const void* w, const void* bias,
         void* out) {
  MmaArgs a{};
  a.in = static_cast<const u16*>(in);
  a.w = static_cast<const u16*>(w);
  a.bias = static_cast<const u16*>(bias);
  a.out = static_cast<u16*>(out);
  a.n = static_cast<int>(p.n);
  a.c = static_cast<int>(p.branches[first].channels);
  a.h = a.ho = static_cast<int>(p.h);
  a.wide = a.wo = static_cast<int>(p.w);
  a.in_s = back ? p.y : p.x;
  a.out_s = back ? p.x : p.y;
  a.combine = p.combine;
  a.turned = back;
  const int read = vector_of(a.in_s, p.w, in), write = vector_of(a.out_s, p.w, out);
  a.vector = read < write ? read : write;
  for (int m = first; m <= last; ++m) {
    const Branch& b = p.branches[m];
    a.in_c[m - first] = back ? b.out_start : b.in_start;
    a.out_c[m - first] = back ? b.in_start : b.out_start;
    a.weight_start[m - first] = b.weight_start;
  }
  const bool slabs = back && p.combine == Combine::concat;
  const int set = kernels_of(p, first, last);
  if (p.dtype == DType::bf16) return by_kernels<bf16>(set, slabs, a, a.c, stream);
  return by_kernels<f16>(set, slabs, a, a.c, stream);
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

}  // namespace lk::multi_dwconv2d::cuda
