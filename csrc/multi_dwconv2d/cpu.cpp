// Compiled once for each instruction set, with LK_ISA naming it.
#include "lk/entry.h"
#include "multi_dwconv2d/kernel_cpu.h"
#include "multi_dwconv2d/nchw_direct.h"
#include "multi_dwconv2d/nchw_grad.h"
#include "multi_dwconv2d/nhwc.h"
#include "multi_dwconv2d/nhwc_direct.h"

namespace {

template <class T>
const T* in(const void* v) {
  return static_cast<const T*>(v);
}

// A convolution that the direct kernels take, or unsupported.
template <class T>
int direct_as([[maybe_unused]] const Params& p, [[maybe_unused]] const T* x, [[maybe_unused]] const T* w,
              [[maybe_unused]] const T* b, [[maybe_unused]] T* y, [[maybe_unused]] bool input) {
#if defined(__AVX2__)
  if constexpr (__is_same(T, float))
    if (nchw::goes_direct(p, input)) return nchw::direct(p, x, w, b, y, input);
  if constexpr (__is_same(T, float))
    if (nhwc::goes_direct(p, input)) return nhwc::direct(p, x, w, b, y, input);
#endif
  return unsupported;
}

template <class T>
int fwd_as(const Params& p, const void* x, const void* w, const void* b, void* y) {
  if constexpr (kFast<T>) {
    const int e = direct_as<T>(p, in<T>(x), in<T>(w), in<T>(b), static_cast<T*>(y), false);
    if (e != unsupported) return e;
    if (nhwc::fwd<T>(p, in<T>(x), in<T>(w), in<T>(b), static_cast<T*>(y))) return ok;
    if (p.layout == Layout::nchw) return nchw::fwd<T>(p, in<T>(x), in<T>(w), in<T>(b), static_cast<T*>(y));
  }
  return generic_fwd<T>(p, in<T>(x), in<T>(w), in<T>(b), static_cast<T*>(y));
}
template <class T>
int bwd_x_as(const Params& p, const void* g, const void* w, void* gx) {
  if constexpr (kFast<T>) {
    const int e = direct_as<T>(p, in<T>(g), in<T>(w), nullptr, static_cast<T*>(gx), true);
    if (e != unsupported) return e;
    if (nhwc::bwd_x<T>(p, in<T>(g), in<T>(w), static_cast<T*>(gx))) return ok;
    if (p.layout == Layout::nchw) return nchw::bwd_x<T>(p, in<T>(g), in<T>(w), static_cast<T*>(gx));
  }
  return generic_bwd_x<T>(p, in<T>(g), in<T>(w), static_cast<T*>(gx));
}
template <class T>
int bwd_w_as(const Params& p, const void* g, const void* x, void* gw) {
  if constexpr (kFast<T>) {
    if (nhwc::bwd_w<T>(p, in<T>(g), in<T>(x), static_cast<T*>(gw))) return ok;
    if (p.layout == Layout::nchw) return nchw::bwd_w<T>(p, in<T>(g), in<T>(x), static_cast<T*>(gw));
  }
  return generic_bwd_w<T>(p, in<T>(g), in<T>(x), static_cast<T*>(gw));
}

int fwd(const Params& p, const void* x, const void* w, const void* b, void* y) {
#define LK_CALL(T) fwd_as<T>(p, x, w, b, y)
  LK_BY_DTYPE(LK_CALL);
#undef LK_CALL
}
int bwd_x(const Params& p, const void* g, const void* w, void* gx) {
#define LK_CALL(T) bwd_x_as<T>(p, g, w, gx)
  LK_BY_DTYPE(LK_CALL);
#undef LK_CALL
}
int bwd_w(const Params& p, const void* g, const void* x, void* gw) {
#define LK_CALL(T) bwd_w_as<T>(p, g, x, gw)
  LK_BY_DTYPE(LK_CALL);
#undef LK_CALL
}

}  // namespace

namespace lk::multi_dwconv2d {
extern const Table LK_CAT(table_, LK_ISA);
const Table LK_CAT(table_, LK_ISA) = {fwd, bwd_x, bwd_w};
}  // namespace lk::multi_dwconv2d
