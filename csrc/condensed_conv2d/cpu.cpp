// Compiled once for each instruction set, with LK_ISA naming it.
#include "condensed_conv2d/grad.h"
#include "condensed_conv2d/nchw.h"
#include "condensed_conv2d/nhwc.h"

namespace {

using namespace condensed;

inline bool inside(const Params& p) {
  for (i64 i = 0; i < p.groups * p.picked; ++i)
    if (p.index[i] < 0 || p.index[i] >= p.c) return false;
  return true;
}

template <class T>
struct Run {
  using A = Acc<T>;
  using Fn = int (*)(const Params&, const T*, const T*, const A*, const A*, T*);
  static int call(Fn fn, const Params& p, const void* a, const void* b, const void* scale, const void* shift,
                  void* to) {
    return fn(p, static_cast<const T*>(a), static_cast<const T*>(b), static_cast<const A*>(scale),
              static_cast<const A*>(shift), static_cast<T*>(to));
  }
  static int fwd(const Params& p, const void* x, const void* w, const void* scale, const void* shift, void* y) {
    return call(p.layout == Layout::nchw ? nchw_fwd<T> : nhwc_fwd<T>, p, x, w, scale, shift, y);
  }
  static int bwd_w(const Params& p, const void* g, const void* x, const void* scale, const void* shift, void* gw) {
    return p.layout == Layout::nchw ? call(nchw_bwd_w<T>, p, g, x, scale, shift, gw) : unsupported;
  }
};

int fwd(const Params& p, const void* x, const void* w, const void* scale, const void* shift, void* y) {
  if (!inside(p)) return bad_index;
#define LK_CALL(T) Run<T>::fwd(p, x, w, scale, shift, y)
  LK_BY_DTYPE(LK_CALL);
#undef LK_CALL
}
int bwd_w(const Params& p, const void* g, const void* x, const void* scale, const void* shift, void* gw) {
  if (!inside(p)) return bad_index;
#define LK_CALL(T) Run<T>::bwd_w(p, g, x, scale, shift, gw)
  LK_BY_DTYPE(LK_CALL);
#undef LK_CALL
}

}  // namespace

namespace lk::condensed_conv2d {
extern const Table LK_CAT(table_, LK_ISA);
const Table LK_CAT(table_, LK_ISA) = {fwd, bwd_w};
}  // namespace lk::condensed_conv2d
