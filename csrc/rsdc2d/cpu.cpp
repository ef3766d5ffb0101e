// Compiled once for each instruction set, with LK_ISA naming it.
#include "lk/entry.h"
#include "rsdc2d/dense.h"
#include "rsdc2d/dense_grad.h"
#include "rsdc2d/depthwise.h"
#include "rsdc2d/plane_grad.h"
#include "rsdc2d/rows_of_four.h"

namespace {

using namespace rsdc;

// Whether vectors are better filled by channels, `filled` of them, than by pixels. `sums`: products of one output.
inline bool dense(const Params& p, i64 filled, i64 sums) {
  return filled >= 16 && (p.layout == Layout::nhwc || sums >= 64);
}

// Filters of dense groups with taps of their own: whether they fill so much of the window that sharing all of it is
// faster. `percent`: what choosing costs at most; measured.
inline bool whole_window(const Params& p, i64 percent) {
  return p.sets > p.groups && !p.exact && p.taps * 100 > p.kernel * p.kernel * percent;
}

template <class T>
Way way_of(const Params& p, Pass pass) {
  if (is_depthwise(p)) return Way::depthwise;
  if (mostly_zeros(p, pass == Pass::bwd_x)) return Way::generic;
  if (pass == Pass::bwd_w) {
    const bool channels = group_in(p) >= 16;
    if (p.exact && (!channels || p.sets > p.groups)) return Way::generic;
    if (in_planes(p, pass)) return Way::planes;
    if (channels && whole_window(p, 70)) return Way::window;
    return channels ? Way::channels : Way::pixels;
  }
  if (in_planes(p, pass)) return Way::planes;
  if (in_fours(p, pass == Pass::bwd_x)) return Way::fours;
  if (pass == Pass::bwd_x) return dense(p, group_in(p), group_out(p) * p.taps) ? Way::channels : Way::pixels;
  if (!dense(p, group_out(p), group_in(p) * p.taps)) return Way::pixels;
  if (whole_window(p, kPairs<T> && has_pairs() ? 20 : 42)) return Way::window;
  return p.sets > p.groups ? Way::pixels : Way::channels;
}

template <class T>
int fast_fwd(const Params& p, const T* x, const T* w, const T* bias, T* y) {
  switch (way_of<T>(p, Pass::fwd)) {
    case Way::depthwise:
      return depthwise_fwd<T>(p, x, w, bias, y);
    case Way::generic:
      return generic_fwd<T>(p, x, w, bias, y);
    case Way::planes:
      return planes_conv<T>(p, false, x, w, bias, y);
    case Way::pixels:
      return sparse_conv<T>(p, false, x, w, bias, y);
    case Way::channels:
      return dense_conv<T>(p, false, x, w, bias, y);
    case Way::fours:
      if constexpr (__is_same(T, float)) return fours_conv(p, false, x, w, bias, y);
      [[fallthrough]];
    case Way::window:
      break;
  }
  Window<T> window(p);
  if (!window.there()) return out_of_memory;
  window.spread(p, w);
  return dense_conv<T>(window.params(p), false, x, window.data, bias, y);
}
template <class T>
int fast_bwd_x(const Params& p, const T* g, const T* w, T* gx) {
  switch (way_of<T>(p, Pass::bwd_x)) {
    case Way::depthwise:
      return depthwise_bwd_x<T>(p, g, w, gx);
    case Way::generic:
      return generic_bwd_x<T>(p, g, w, gx);
    case Way::planes:
      return planes_conv<T>(p, true, g, w, nullptr, gx);
    case Way::channels:
      return dense_conv<T>(p, true, g, w, nullptr, gx);
    case Way::fours:
      if constexpr (__is_same(T, float)) return fours_conv(p, true, g, w, nullptr, gx);
      [[fallthrough]];
    default:
      return sparse_conv<T>(p, true, g, w, nullptr, gx);
  }
}
template <class T>
int fast_bwd_w(const Params& p, const T* g, const T* x, T* gw) {
  switch (way_of<T>(p, Pass::bwd_w)) {
    case Way::depthwise:
      return depthwise_bwd_w<T>(p, g, x, gw);
    case Way::generic:
      return generic_bwd_w<T>(p, g, x, gw);
    case Way::planes:
      return planes_grad<T>(p, g, x, gw);
    case Way::channels:
      return dense_grad<T>(p, g, x, gw);
    case Way::window:
      break;
    default:
      return sparse_grad<T>(p, g, x, gw);
  }
  Window<T> window(p);
  if (!window.there()) return out_of_memory;
  const int error = dense_grad<T>(window.params(p), g, x, window.data);
  window.gather(p, gw);
  return error;
}

template <class T>
int fwd_as(const Params& p, const T* x, const T* w, const T* bias, T* y) {
  if constexpr (kFast<T>) return fast_fwd<T>(p, x, w, bias, y);
  return generic_fwd<T>(p, x, w, bias, y);
}
template <class T>
int bwd_x_as(const Params& p, const T* g, const T* w, T* gx) {
  if constexpr (kFast<T>) return fast_bwd_x<T>(p, g, w, gx);
  return generic_bwd_x<T>(p, g, w, gx);
}
template <class T>
int bwd_w_as(const Params& p, const T* g, const T* x, T* gw) {
  if constexpr (kFast<T>) return fast_bwd_w<T>(p, g, x, gw);
  return generic_bwd_w<T>(p, g, x, gw);
}

template <class T>
const T* in(const void* v) {
  return static_cast<const T*>(v);
}
template <class T>
T* out(void* v) {
  return static_cast<T*>(v);
}

int fwd(const Params& p, const void* x, const void* w, const void* b, void* y) {
#define LK_CALL(T) fwd_as<T>(p, in<T>(x), in<T>(w), in<T>(b), out<T>(y))
  LK_BY_DTYPE(LK_CALL);
#undef LK_CALL
}
int bwd_x(const Params& p, const void* g, const void* w, void* gx) {
#define LK_CALL(T) bwd_x_as<T>(p, in<T>(g), in<T>(w), out<T>(gx))
  LK_BY_DTYPE(LK_CALL);
#undef LK_CALL
}
int bwd_w(const Params& p, const void* g, const void* x, void* gw) {
#define LK_CALL(T) bwd_w_as<T>(p, in<T>(g), in<T>(x), out<T>(gw))
  LK_BY_DTYPE(LK_CALL);
#undef LK_CALL
}

// 16-bit types that the processor multiplies in pairs choose otherwise.
Way way(const Params& p, Pass pass) {
  if (!kFast<double> && p.dtype != DType::f32) return Way::generic;
  return p.dtype == DType::bf16 ? way_of<bf16>(p, pass) : way_of<float>(p, pass);
}

int moments(const Params& p, const float* x, const float* w, const float* g, i64 groups, i64 planes, double* sums) {
  if (p.dtype != DType::f32 || way(p, Pass::fwd) != Way::fours) return unsupported;
  const Sums to{g, groups, planes, sums};
  return fours_conv(p, false, x, w, nullptr, nullptr, &to);
}

}  // namespace

namespace lk::rsdc2d {
extern const Table LK_CAT(table_, LK_ISA);
const Table LK_CAT(table_, LK_ISA) = {fwd, bwd_x, bwd_w, way, moments};
}  // namespace lk::rsdc2d
