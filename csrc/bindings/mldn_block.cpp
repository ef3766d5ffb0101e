#include <pybind11/stl.h>

#include <vector>

#include "bindings/native.h"
#include "mldn_block/params.h"

namespace lk::mldn_block {

LK_TABLE_OF_KERNELS()

namespace {

void check(int error) { bindings::check("mldn_block", error); }

using bindings::at;

Inputs inputs(const std::vector<Address>& a, std::uint64_t seed) {
  if (a.size() != 16) throw std::invalid_argument("mldn_block: sixteen inputs");
  Inputs in{};
  const Address* from = a.data();
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
Outputs outputs(const std::vector<Address>& a) {
  if (a.size() != 6) throw std::invalid_argument("mldn_block: six outputs");
  return {at(a[0]), at(a[1]), at(a[2]), at(a[3]), at(a[4]), at(a[5])};
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

// inputs: x x_image x_pixel weight1 weight3 bias3 weight_sfr affine1 affine2 affine3 running1 running2 running3 taps
// index index_sfr; outputs: y mid pixels stats1 stats2 stats3; gradients: g g_nhwc buffer inner third state lost x
// weight1 weight3 bias3 weight_sfr affine1 affine2 affine3.
void bind(py::module_& m) {
  using nogil = py::call_guard<py::gil_scoped_release>;
  using Addresses = std::vector<Address>;
  py::class_<Plan>(m, "MldnBlockPlan")
      .def(py::init<const std::vector<i64>&, double, i64, double, std::vector<i64>>())
      .def(
          "fwd",
          [](const Plan& plan, const Addresses& in, std::uint64_t seed, const Addresses& out, int threads) {
            check(table().fwd(plan.with(threads), inputs(in, seed), outputs(out)));
          },
          nogil())
      .def(
          "infer",
          [](const Plan& plan, const Addresses& in, Address y, int threads) {
            check(table().infer(plan.with(threads), inputs(in, 0), at(y)));
          },
          nogil())
      .def(
          "bwd",
          [](const Plan& plan, const Addresses& in, std::uint64_t seed, const Addresses& out, const Addresses& g,
             int threads) {
            if (g.size() != 15) throw std::invalid_argument("mldn_block: fifteen gradients");
            const Gradients grad{at(g[0]),  static_cast<i64>(g[1]),
                                 at(g[2]),  at(g[3]),
                                 at(g[4]),  at(g[5]),
                                 at(g[6]),  at(g[7]),
                                 at(g[8]),  at(g[9]),
                                 at(g[10]), at(g[11]),
                                 at(g[12]), at(g[13]),
                                 at(g[14])};
            check(table().bwd(plan.with(threads), inputs(in, seed), outputs(out), grad));
          },
          nogil());
}

const bindings::Registrar registrar(bind);

}  // namespace
}  // namespace lk::mldn_block
