#include "lk/simt_entry.cuh"
#include "rsdc2d/cuda_launch.h"
#include "rsdc2d/cuda_product.cuh"

namespace lk::rsdc2d::cuda {
namespace {

constexpr i64 kGrid = 0x7fffffff;

// Blocks that fill a device about twice.
#ifdef LK_HOST
constexpr i64 kFill = 2;
#else
constexpr i64 kFill = 264;
#endif

// Whether pixels lie channels last, each at an address of 16 bytes.
bool aligned(const Params& p, const Strides& s) { return s.c == 1 && ((s.n | s.h | s.w) * size_of(p.dtype)) % 16 == 0; }

// Of one phase, the largest.
template <class Args>
i64 blocks(const Params& p, const Args& a, int rows, int columns) {
  const i64 pixels = p.n * ceil_div(a.out_h, a.every_h) * ceil_div(a.out_w, a.every_w);
  return ceil_div(pixels, rows) * a.p.groups * ceil_div(a.columns, columns);
}

template <class K>
int run(const Params& p, typename K::Args& a, void* stream) {
  a.tiles = static_cast<int>(ceil_div(a.columns, K::kN));
  const i64 count = blocks(p, a, K::kM, K::kN);
  if (count > kGrid) return kUnsupported;
  return launch<K>(K::kTensor ? a.back ? "mma_back" : "mma_conv"
                   : a.back   ? "tile_back"
                              : "tile_conv",
                   {count, 1, a.every_h * a.every_w}, K::shared_bytes(a), stream, a);
}

// The tile that computes least for the columns, a narrow one's own price included.
int width_of(i64 columns) {
  int best = 16;
  double least = 1e300;
  for (const auto& [width, price] : {std::pair{128, 1.0}, {64, 1.1}, {32, 1.4}, {16, 2.0}}) {
    const double cost = static_cast<double>(ceil_div(columns, width) * width) * price;
    if (cost < least) {
      least = cost;
      best = width;
    }
  }
  return best;
}

template <class T>
int by_width(const Params& p, ProductArgs<T>& a, void* stream) {
  if constexpr (sizeof(T) == 8)
    return run<ProductConv<T, 128, 32, 32, 32, 4, 2>>(p, a, stream);
  else
    return run<ProductConv<T, 128, 64, 32, 64, 4, 2>>(p, a, stream);
}

template <class T>
int by_width(const Params& p, ProductArgs<u16>& a, void* stream) {
  const int width = width_of(a.columns);
  // Tall tiles read the weight less often; short ones are more.
  const bool tall = blocks(p, a, 256, width) * a.every_h * a.every_w >= kFill;
  if (width == 128)
    return tall ? run<ProductConv<T, 256, 128, 64, 64, 3, 1>>(p, a, stream)
                : run<ProductConv<T, 128, 128, 64, 64, 4, 2>>(p, a, stream);
  if (width == 64)
    return tall ? run<ProductConv<T, 256, 64, 64, 64, 3, 2>>(p, a, stream)
                : run<ProductConv<T, 128, 64, 32, 64, 4, 3>>(p, a, stream);
  if (width == 32) return run<ProductConv<T, 128, 32, 32, 32, 4, 4>>(p, a, stream);
  return run<ProductConv<T, 128, 16, 32, 16, 4, 4>>(p, a, stream);
}

template <class T>
int conv(const Params& p, void* stream, bool back, const void* in, const void* w, const void* bias, void* work,
         void* out) {
  using E = typename Form<T>::E;
  using P = Pack<E>;
  ProductArgs<E> a{};
  a.p = problem_of(p);
  typename P::Args pack{
      static_cast<const E*>(w), static_cast<E*>(work), weights_of(p), a.p.taps, a.p.part, a.p.each, back};
  if (const int error = launch<P>("pack", {ceil_div(pack.count, P::kThreads)}, 0, stream, pack)) return error;
  a.in = static_cast<const E*>(in);
  a.w = pack.out;
  a.bias = static_cast<const E*>(bias);
  a.out = static_cast<E*>(out);
  a.in_s = back ? p.y : p.x;
  a.out_s = back ? p.x : p.y;
  a.in_h = back ? a.p.ho : a.p.h;
  a.in_w = back ? a.p.wo : a.p.w;
  a.out_h = back ? a.p.h : a.p.ho;
  a.out_w = back ? a.p.w : a.p.wo;
  a.depth = back ? a.p.each : a.p.part;
  a.columns = back ? a.p.part : a.p.each;
  a.step_h = back ? 1 : a.p.stride_h;
  a.step_w = back ? 1 : a.p.stride_w;
  a.every_h = back ? a.p.stride_h : 1;
  a.every_w = back ? a.p.stride_w : 1;
  a.back = back;
  a.vector = aligned(p, a.out_s) && reinterpret_cast<std::uintptr_t>(out) % 16 == 0;
  return by_width<T>(p, a, stream);
}

}  // namespace

bool product_takes(const Params& p, Pass pass) {
  if (p.exact || p.taps > kMostTaps || (p.sets != 1 && p.sets != p.groups)) return false;
  const i64 part = p.ci / p.groups, each = p.co / p.groups, depth = pass == Pass::bwd_x ? each : part;
  const i64 reach[] = {p.h,
                       p.w,
                       p.ho * p.stride_h,
                       p.wo * p.stride_w,
                       p.kernel * p.dilation_h + p.pad_h,
                       p.kernel * p.dilation_w + p.pad_w};
  for (const i64 size : reach)
    if (size >= kSize) return false;
  const i64 copy = 16 / size_of(p.dtype), block = 2 * copy;
  if (part % copy || each % copy || (pass != Pass::bwd_w && depth % block)) return false;
  if (p.stride_h * p.stride_w > 65535) return false;
  return (pass == Pass::bwd_x || aligned(p, p.x)) && (pass == Pass::fwd || aligned(p, p.y));
}

int product_conv(const Params& p, void* stream, bool back, const void* in, const void* w, const void* bias, void* work,
                 void* out) {
  LK_BY_DTYPE(conv, p, stream, back, in, w, bias, work, out);
}

}  // namespace lk::rsdc2d::cuda
