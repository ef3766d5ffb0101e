// Entries of the engine with channels in its vectors: NHWC calls, and NCHW calls on narrow maps. Each returns false
// for what it leaves to others.
#pragma once
#include "multi_dwconv2d/nhwc_bwd_w.h"
#include "multi_dwconv2d/nhwc_conv.h"

namespace {
namespace nhwc {

// Branches that read the same channels make one group; with `split` every branch is its own.
inline int groups(const Params& p) {
  const Branch& a = p.branches[0];
  bool same = true, apart = p.combine == Combine::concat;
  i64 channels = 0;
  for (i64 m = 0; m < p.num_branches; ++m) {
    const Branch& b = p.branches[m];
    same = same && b.in_start == a.in_start && b.channels == a.channels;
    apart = apart && b.in_start == channels;
    channels += b.channels;
  }
  if (same && a.in_start == 0 && a.channels == p.c) return 1;
  return apart && channels == p.c ? static_cast<int>(p.num_branches) : 0;
}

enum class Task { forward, input, weight };

// Whether transposing pays on maps of rows of a vector or more, where several planes are read for one that is written
// or the reverse. Measured: rows that nearly fill their vectors are as fast as they are; planes a page apart meet in a
// few sets of the caches.
template <class T>
bool takes_wide(const Params& p) {
  i64 reach = 0;
  for (i64 m = 0; m < p.num_branches; ++m) reach = imax(reach, p.branches[m].dilation * (p.branches[m].kernel / 2));
  return kVecBytes == 64 && p.w <= 60 && p.w % 16 != 15 && p.h * p.w * static_cast<i64>(sizeof(T)) % 2048 != 0 &&
         (p.w <= 16 || reach <= 4);
}

// Whether an NCHW call goes through this engine, its planes transposed on the way: measured, that pays on maps narrower
// than a vector along their rows, on wider ones where planes are several, and for sums over whole planes unless their
// rows are whole vectors.
template <class T>
bool takes_planes(const Params& p, Task task) {
  if (!kTransposes<T> || p.c < kLanes<float>) return false;
  if (p.stride_h != 1 || p.stride_w != 1 || p.x.w != 1 || p.y.w != 1 || p.x.h != p.w || p.y.h != p.wo) return false;
  if (task == Task::weight) return p.w % 16 != 0;
  const bool several = p.combine != Combine::add && p.num_branches > 1 && groups(p) == 1;
  return p.w < kLanes<float> || (several && (takes_wide<T>(p) || (task == Task::input && p.w <= 16)));
}

template <class T>
bool takes(const Params& p, Task task) {
  if (p.n == 0 || p.c == 0 || p.h == 0 || p.w == 0) return false;
  return p.layout == Layout::nhwc || takes_planes<T>(p, task);
}

template <class T>
bool conv_all(const Params& p, Task task, const T* src, const T* w, const T* bias, T* dst) {
  const int n = groups(p), branches = n == 1 ? static_cast<int>(p.num_branches) : 1;
  if (n == 0 || !takes<T>(p, task)) return false;
  for (int m = 0; m < n; ++m)
    if (!conv_group<T>(p, task == Task::input, m, branches, src, w, bias, dst)) return false;
  return true;
}

template <class T>
bool fwd(const Params& p, const T* x, const T* w, const T* bias, T* y) {
  return conv_all<T>(p, Task::forward, x, w, bias, y);
}
template <class T>
bool bwd_x(const Params& p, const T* g, const T* w, T* gx) {
  return conv_all<T>(p, Task::input, g, w, nullptr, gx);
}
template <class T>
bool bwd_w(const Params& p, const T* g, const T* x, T* gw) {
  const int n = groups(p), branches = n == 1 ? static_cast<int>(p.num_branches) : 1;
  if (n == 0 || !takes<T>(p, Task::weight)) return false;
  for (int m = 0; m < n; ++m)
    if (!bwd_w_group<T>(p, m, branches, g, x, gw)) return false;
  return true;
}

}  // namespace nhwc
}  // namespace
