#include <pybind11/stl.h>

#include "bindings/multi_dwconv2d_plan.h"
#include "bindings/native.h"

namespace lk::multi_dwconv2d {

LK_TABLE_OF_KERNELS()

namespace {

void check(int error) { bindings::check("multi_dwconv2d", error); }

Params with_threads(const Plan& plan, int threads) {
  Params p = plan.p;
  p.threads = threads;
  return p;
}

void bind(py::module_& m) {
  using nogil = py::call_guard<py::gil_scoped_release>;
  py::class_<Plan>(m, "MultiDwconv2dPlan")
      .def(py::init<const std::vector<i64>&, const std::vector<i64>&, const std::vector<i64>&,
                    const std::vector<std::vector<i64>>&>())
      .def(
          "fwd",
          [](const Plan& plan, Address x, Address w, Address b, Address y, int threads) {
            check(table().fwd(with_threads(plan, threads), reinterpret_cast<void*>(x), reinterpret_cast<void*>(w),
                              reinterpret_cast<void*>(b), reinterpret_cast<void*>(y)));
          },
          nogil())
      .def(
          "bwd_x",
          [](const Plan& plan, Address g, Address w, Address gx, int threads) {
            check(table().bwd_x(with_threads(plan, threads), reinterpret_cast<void*>(g), reinterpret_cast<void*>(w),
                                reinterpret_cast<void*>(gx)));
          },
          nogil())
      .def(
          "bwd_w",
          [](const Plan& plan, Address g, Address x, Address gw, int threads) {
            check(table().bwd_w(with_threads(plan, threads), reinterpret_cast<void*>(g), reinterpret_cast<void*>(x),
                                reinterpret_cast<void*>(gw)));
          },
          nogil());
}

const bindings::Registrar registrar(bind);

}  // namespace
}  // namespace lk::multi_dwconv2d
