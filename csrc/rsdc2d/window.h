// Weights of the whole window, zero but for the taps: for kernels that are faster without choosing.
#pragma once
#include "rsdc2d/plan.h"

namespace {
namespace rsdc {

// [output][input of its group][cell], and the cells' numbers. Memory of its own: kernels use the thread's scratch.
template <class T>
struct Window {
  i64 cells, inputs;
  T* data;
  i64* all;
  explicit Window(const Params& p) : cells(p.kernel * p.kernel), inputs(group_in(p)) {
    data = static_cast<T*>(__builtin_malloc(static_cast<std::size_t>(p.co * inputs * cells) * sizeof(T)));
    all = static_cast<i64*>(__builtin_malloc(static_cast<std::size_t>(cells) * sizeof(i64)));
    if (all)
      for (i64 i = 0; i < cells; ++i) all[i] = i;
  }
  Window(const Window&) = delete;
  ~Window() {
    __builtin_free(data);
    __builtin_free(all);
  }
  bool there() const { return data && all; }

  void spread(const Params& p, const T* w) {
    __builtin_memset(static_cast<void*>(data), 0, static_cast<std::size_t>(p.co * inputs * cells) * sizeof(T));
    for (i64 o = 0; o < p.co; ++o)
      for (i64 t = 0; t < p.taps; ++t) {
        if (!tap_at(p, set_of(p, o), t).inside) continue;
        const i64 cell = p.cells[set_of(p, o) * p.taps + t];
        for (i64 c = 0; c < inputs; ++c) {
          T* const to = data + (o * inputs + c) * cells + cell;
          *to = from_acc<T>(to_acc(*to) + to_acc(w[(o * inputs + c) * p.taps + t]));
        }
      }
  }
  void gather(const Params& p, T* w) const {
    for (i64 o = 0; o < p.co; ++o)
      for (i64 t = 0; t < p.taps; ++t) {
        const bool inside = tap_at(p, set_of(p, o), t).inside;
        const i64 cell = inside ? p.cells[set_of(p, o) * p.taps + t] : 0;
        for (i64 c = 0; c < inputs; ++c)
          w[(o * inputs + c) * p.taps + t] = inside ? data[(o * inputs + c) * cells + cell] : T{};
      }
  }
  // The same convolution, as one whose filters share all cells.
  Params params(const Params& p) const {
    Params q = p;
    q.taps = cells;
    q.sets = 1;
    q.cells = all;
    return q;
  }
};

}  // namespace rsdc
}  // namespace
