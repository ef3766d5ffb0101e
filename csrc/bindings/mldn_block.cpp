#include <pybind11/stl.h>

#include "bindings/mldn_block_plan.h"
#include "bindings/native.h"

namespace lk::mldn_block {

LK_TABLE_OF_KERNELS()

namespace {

void check(int error) { bindings::check("mldn_block", error); }

using bindings::at;

Outputs outputs(const std::vector<Address>& a) {
  if (a.size() != 6) throw std::invalid_argument("mldn_block: six outputs");
  return {at(a[0]), at(a[1]), at(a[2]), at(a[3]), at(a[4]), at(a[5])};
}

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
