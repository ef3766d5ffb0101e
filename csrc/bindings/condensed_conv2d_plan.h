// Params out of the list of numbers that Python gives; made once a shape and kept by the Python side.
#pragma once
#include <stdexcept>
#include <vector>

#include "condensed_conv2d/params.h"

namespace lk::condensed_conv2d {

struct Plan {
  Params p{};

  // n c pixels co groups picked, strides of x: image pixel channel, layout dtype activation
  explicit Plan(const std::vector<i64>& v) {
    if (v.size() != 12) throw std::invalid_argument("Plan: wrong number of values");
    i64 i = 0;
    for (i64* to : {&p.n, &p.c, &p.pixels, &p.co, &p.groups, &p.picked, &p.image, &p.pixel, &p.channel}) *to = v[i++];
    p.layout = static_cast<Layout>(v[9]);
    p.dtype = static_cast<DType>(v[10]);
    p.act = static_cast<Act>(v[11]);
  }

  Params with(const void* index, int threads) const {
    Params q = p;
    q.index = static_cast<const i64*>(index);
    q.threads = threads;
    return q;
  }
};

}  // namespace lk::condensed_conv2d
