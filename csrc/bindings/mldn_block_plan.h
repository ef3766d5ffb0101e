// Params and inputs out of the lists of numbers that Python gives.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include "bindings/address.h"
#include "mldn_block/params.h"

namespace lk::mldn_block {

// x x_image x_pixel weight1 weight3 bias3 weight_sfr affine1 affine2 affine3 running1 running2 running3 taps index
// index_sfr
inline Inputs inputs(const std::vector<bindings::Address>& a, std::uint64_t seed) {
  if (a.size() != 16) throw std::invalid_argument("mldn_block: sixteen inputs");
  Inputs in{};
  const bindings::Address* from = a.data();
  using bindings::at;
  in.x = at(*from++);
  for (i64* to : {&in.x_image, &in.x_pixel}) *to = static_cast<i64>(*from++);
  for (const void** to : {&in.weight1, &in.weight3, &in.bias3, &in.weight_sfr, &in.affine1, &in.affine2, &in.affine3,
                          &in.running1, &in.running2, &in.running3})
    *to = at(*from++);
  in.cells = static_cast<const i64*>(at(*from++));
  in.index = static_cast<const i64*>(at(*from++));
  in.index_sfr = static_cast<const i64*>(at(*from));
  in.seed = seed;
  return in;
}
// Made once a shape and kept by the Python side; owns the partners that Params points to.
struct Plan {
  Params p{};
  std::vector<i64> partner;

  // head: n c h w layers paths kappa mid groups kernel taps sets index_groups condense batch_stats keep nhwc
  // version dtype
  Plan(const std::vector<i64>& head, double eps, i64 threshold, double factor, std::vector<i64> table)
      : partner(std::move(table)) {
    if (head.size() != 19) throw std::invalid_argument("Plan: wrong number of values");
    const i64* v = head.data();
    for (i64* to : {&p.n, &p.c, &p.h, &p.w, &p.layers, &p.paths, &p.kappa, &p.mid, &p.groups, &p.kernel, &p.taps,
                    &p.sets, &p.index_groups, &p.condense, &p.batch_stats, &p.keep, &p.nhwc, &p.version})
      *to = *v++;
    p.dtype = static_cast<DType>(*v);
    p.eps = eps;
    p.threshold = static_cast<std::uint32_t>(threshold);
    p.factor = factor;
    p.partner = partner.data();
    if (static_cast<i64>(partner.size()) != p.layers * p.paths) throw std::invalid_argument("Plan: partners");
  }
  Plan(const Plan&) = delete;
  Params with(int threads) const {
    Params q = p;
    q.threads = threads;
    return q;
  }
};

}  // namespace lk::mldn_block
