#include <pybind11/stl.h>

#include <vector>

#include "bindings/native.h"
#include "bindings/rsdc2d_plan.h"

namespace lk::rsdc2d {

LK_TABLE_OF_KERNELS()

namespace {

void check(int error) { bindings::check("rsdc2d", error); }

using bindings::at;

void bind(py::module_& m) {
  using nogil = py::call_guard<py::gil_scoped_release>;
  py::class_<Plan>(m, "Rsdc2dPlan")
      .def(py::init<const std::vector<i64>&, const std::vector<i64>&, const std::vector<i64>&>())
      .def(
          "fwd",
          [](const Plan& plan, Address x, Address w, Address b, Address taps, Address y, int threads) {
            check(table().fwd(plan.with(at(taps), threads), at(x), at(w), at(b), at(y)));
          },
          nogil())
      .def(
          "bwd_x",
          [](const Plan& plan, Address g, Address w, Address taps, Address gx, int threads) {
            check(table().bwd_x(plan.with(at(taps), threads), at(g), at(w), at(gx)));
          },
          nogil())
      .def(
          "bwd_w",
          [](const Plan& plan, Address g, Address x, Address taps, Address gw, int threads) {
            check(table().bwd_w(plan.with(at(taps), threads), at(g), at(x), at(gw)));
          },
          nogil())
      .def(
          "moments",
          [](const Plan& plan, Address x, Address w, Address taps, Address g, i64 groups, i64 planes, Address sums,
             int threads) {
            check(table().moments(plan.with(at(taps), threads), static_cast<const float*>(at(x)),
                                  static_cast<const float*>(at(w)), static_cast<const float*>(at(g)), groups, planes,
                                  static_cast<double*>(at(sums))));
          },
          nogil())
      .def("ways", [](const Plan& plan, int threads) {
        std::vector<int> ways;
        for (const Pass pass : {Pass::fwd, Pass::bwd_x, Pass::bwd_w})
          ways.push_back(static_cast<int>(table().way(plan.with(nullptr, threads), pass)));
        return ways;
      });
}

const bindings::Registrar registrar(bind);

}  // namespace
}  // namespace lk::rsdc2d
