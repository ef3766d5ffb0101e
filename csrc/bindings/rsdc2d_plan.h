// Params out of the lists of numbers that Python gives; made once a shape and kept by the Python side.
#pragma once
#include <stdexcept>
#include <vector>

#include "rsdc2d/params.h"

namespace lk::rsdc2d {

struct Plan {
  Params p{};

  // head: n ci co h w ho wo kernel stride_h stride_w pad_h pad_w dilation_h dilation_w groups taps sets layout dtype
  // exact; x and y: strides n c h w.
  Plan(const std::vector<i64>& head, const std::vector<i64>& x, const std::vector<i64>& y) {
    if (head.size() != 20 || x.size() != 4 || y.size() != 4)
      throw std::invalid_argument("Plan: wrong number of values");
    const i64* v = head.data();
    for (i64* to : {&p.n, &p.ci, &p.co, &p.h, &p.w, &p.ho, &p.wo, &p.kernel, &p.stride_h, &p.stride_w, &p.pad_h,
                    &p.pad_w, &p.dilation_h, &p.dilation_w, &p.groups, &p.taps, &p.sets})
      *to = *v++;
    p.layout = static_cast<Layout>(v[0]);
    p.dtype = static_cast<DType>(v[1]);
    p.exact = static_cast<int>(v[2]);
    p.x = {x[0], x[1], x[2], x[3]};
    p.y = {y[0], y[1], y[2], y[3]};
  }

  Params with(const void* cells, int threads) const {
    Params q = p;
    q.cells = static_cast<const i64*>(cells);
    q.threads = threads;
    return q;
  }
};

}  // namespace lk::rsdc2d
