// Params that own their branch list, out of the lists of numbers that Python gives.
#pragma once
#include <stdexcept>
#include <vector>

#include "multi_dwconv2d/params.h"

namespace lk::multi_dwconv2d {

struct Plan {
  Params p{};
  std::vector<Branch> branches;

  // head: n c h w ho wo c_out stride_h stride_w combine layout dtype; x and y: strides n c h w;
  // rows: kernel dilation in_start out_start channels weight_start of each branch.
  Plan(const std::vector<i64>& head, const std::vector<i64>& x, const std::vector<i64>& y,
       const std::vector<std::vector<i64>>& rows, bool exact) {
    if (head.size() != 12 || x.size() != 4 || y.size() != 4)
      throw std::invalid_argument("Plan: wrong number of values");
    for (const auto& r : rows) {
      if (r.size() != 6) throw std::invalid_argument("Plan: a branch has six values");
      branches.push_back({r[0], r[1], r[2], r[3], r[4], r[5]});
    }
    p = {head[0],
         head[1],
         head[2],
         head[3],
         head[4],
         head[5],
         head[6],
         head[7],
         head[8],
         {x[0], x[1], x[2], x[3]},
         {y[0], y[1], y[2], y[3]},
         static_cast<Combine>(head[9]),
         static_cast<Layout>(head[10]),
         static_cast<DType>(head[11]),
         static_cast<i64>(branches.size()),
         branches.data(),
         1,
         exact};
  }
  Plan(const Plan&) = delete;
};

}  // namespace lk::multi_dwconv2d
