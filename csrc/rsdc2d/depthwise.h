// One channel a group: where a dense window costs little more than its taps, the depthwise kernels do it, with weights
// that are zero but for the taps.
#pragma once
#include "multi_dwconv2d/params.h"
#include "rsdc2d/plan.h"

#define LK_CAT2(a, b) a##b
#define LK_CAT(a, b) LK_CAT2(a, b)

namespace lk::multi_dwconv2d {
extern const Table LK_CAT(table_, LK_ISA);
}

namespace {
namespace rsdc {

namespace dw = lk::multi_dwconv2d;

// Those kernels know no padding but half a window. Long NCHW lines are better off with the taps alone.
inline bool is_depthwise(const Params& p) {
  const i64 pad = p.dilation_h * (p.kernel / 2);
  const bool same = p.dilation_h == p.dilation_w && p.pad_h == pad && p.pad_w == pad && p.kernel % 2 == 1;
  const i64 window = p.kernel * p.kernel, most = p.layout == Layout::nhwc ? 49 : p.ho * p.wo <= 400 ? 49 : 9;
  return p.groups == p.ci && p.groups == p.co && same && !p.exact && window <= most && window <= 6 * p.taps;
}

struct Depthwise {
  dw::Branch branch;
  dw::Params params;
  explicit Depthwise(const Params& p) : branch{p.kernel, p.dilation_h, 0, 0, p.ci, 0}, params{} {
    params.n = p.n;
    params.c = params.c_out = p.ci;
    params.h = p.h;
    params.w = p.w;
    params.ho = p.ho;
    params.wo = p.wo;
    params.stride_h = p.stride_h;
    params.stride_w = p.stride_w;
    params.x = {p.x.n, p.x.c, p.x.h, p.x.w};
    params.y = {p.y.n, p.y.c, p.y.h, p.y.w};
    params.combine = dw::Combine::concat;
    params.layout = p.layout == Layout::nhwc ? dw::Layout::nhwc : dw::Layout::nchw;
    params.dtype = p.dtype;
    params.num_branches = 1;
    params.branches = &branch;
    params.threads = p.threads;
  }
  Depthwise(const Depthwise&) = delete;
};

// The weights' own memory: the kernels called use the thread's scratch.
template <class T>
struct Window {
  T* data;
  explicit Window(const Params& p)
      : data(static_cast<T*>(__builtin_malloc(static_cast<std::size_t>(p.ci * p.kernel * p.kernel) * sizeof(T)))) {}
  Window(const Window&) = delete;
  ~Window() { __builtin_free(data); }
};

template <class T>
void spread_taps(const Params& p, const T* w, T* window) {
  const i64 cells = p.kernel * p.kernel;
  __builtin_memset(static_cast<void*>(window), 0, static_cast<std::size_t>(p.ci * cells) * sizeof(T));
  for (i64 c = 0; c < p.ci; ++c)
    for (i64 t = 0; t < p.taps; ++t)
      if (tap_at(p, set_of(p, c), t).inside) {
        T* const to = window + c * cells + p.cells[set_of(p, c) * p.taps + t];
        *to = from_acc<T>(to_acc(*to) + to_acc(w[c * p.taps + t]));
      }
}

template <class T>
int depthwise_fwd(const Params& p, const T* x, const T* w, const T* bias, T* y) {
  const Depthwise d(p);
  const Window<T> window(p);
  if (!window.data) return out_of_memory;
  spread_taps(p, w, window.data);
  return dw::LK_CAT(table_, LK_ISA).fwd(d.params, x, window.data, bias, y);
}
template <class T>
int depthwise_bwd_x(const Params& p, const T* g, const T* w, T* gx) {
  const Depthwise d(p);
  const Window<T> window(p);
  if (!window.data) return out_of_memory;
  spread_taps(p, w, window.data);
  return dw::LK_CAT(table_, LK_ISA).bwd_x(d.params, g, window.data, gx);
}
template <class T>
int depthwise_bwd_w(const Params& p, const T* g, const T* x, T* gw) {
  const Depthwise d(p);
  const Window<T> window(p);
  if (!window.data) return out_of_memory;
  const int error = dw::LK_CAT(table_, LK_ISA).bwd_w(d.params, g, x, window.data);
  for (i64 c = 0; c < p.ci; ++c)
    for (i64 t = 0; t < p.taps; ++t) {
      const bool inside = tap_at(p, set_of(p, c), t).inside;
      gw[c * p.taps + t] = inside ? window.data[c * p.kernel * p.kernel + p.cells[set_of(p, c) * p.taps + t]] : T{};
    }
  return error;
}

}  // namespace rsdc
}  // namespace
