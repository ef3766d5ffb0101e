// One channel a group: where a dense window costs little more than its taps, the depthwise kernels do it, with weights
// that are zero but for the taps.
#pragma once
#include "lk/entry.h"
#include "multi_dwconv2d/params.h"
#include "rsdc2d/window.h"

namespace lk::multi_dwconv2d {
extern const Table LK_CAT(table_, LK_ISA);
}

namespace {
namespace rsdc {

namespace dw = lk::multi_dwconv2d;

// Those kernels know no padding but half a window. NCHW rows that fill vectors are better off with the taps alone.
inline bool is_depthwise(const Params& p) {
  const i64 pad = p.dilation_h * (p.kernel / 2);
  const bool same = p.dilation_h == p.dilation_w && p.pad_h == pad && p.pad_w == pad && p.kernel % 2 == 1;
  const i64 window = p.kernel * p.kernel, most = p.layout == Layout::nhwc || p.wo < 16 ? 49 : 9;
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

template <class T>
int depthwise_fwd(const Params& p, const T* x, const T* w, const T* bias, T* y) {
  const Depthwise d(p);
  Window<T> window(p);
  if (!window.there()) return out_of_memory;
  window.spread(p, w);
  return dw::LK_CAT(table_, LK_ISA).fwd(d.params, x, window.data, bias, y);
}
template <class T>
int depthwise_bwd_x(const Params& p, const T* g, const T* w, T* gx) {
  const Depthwise d(p);
  Window<T> window(p);
  if (!window.there()) return out_of_memory;
  window.spread(p, w);
  return dw::LK_CAT(table_, LK_ISA).bwd_x(d.params, g, window.data, gx);
}
template <class T>
int depthwise_bwd_w(const Params& p, const T* g, const T* x, T* gw) {
  const Depthwise d(p);
  Window<T> window(p);
  if (!window.there()) return out_of_memory;
  const int error = dw::LK_CAT(table_, LK_ISA).bwd_w(d.params, g, x, window.data);
  window.gather(p, gw);
  return error;
}

}  // namespace rsdc
}  // namespace
