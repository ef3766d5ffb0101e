#include <pybind11/stl.h>

#include "bindings/condensed_conv2d_plan.h"
#include "bindings/native.h"

namespace lk::condensed_conv2d {

LK_TABLE_OF_KERNELS()

namespace {

using bindings::at;

using Kernel = int (*)(const Params&, const void*, const void*, const void*, const void*, void*);
void run(const Plan& plan, Kernel kernel, Address a, Address b, Address scale, Address shift, Address index, Address to,
         int threads) {
  const int error = kernel(plan.with(at(index), threads), at(a), at(b), at(scale), at(shift), at(to));
  if (error == bad_index)
    throw std::out_of_range("condensed_conv2d: index must be from 0 to " + std::to_string(plan.p.c - 1) +
                            ", the channels of x");
  bindings::check("condensed_conv2d", error);
}
void fwd(const Plan& p, Address x, Address w, Address scale, Address shift, Address index, Address y, int threads) {
  run(p, table().fwd, x, w, scale, shift, index, y, threads);
}
void bwd_w(const Plan& p, Address g, Address x, Address scale, Address shift, Address index, Address gw, int threads) {
  run(p, table().bwd_w, g, x, scale, shift, index, gw, threads);
}

void bind(py::module_& m) {
  py::class_<Plan>(m, "CondensedConv2dPlan")
      .def(py::init<const std::vector<i64>&>())
      .def("fwd", &fwd, py::call_guard<py::gil_scoped_release>())
      .def("bwd_w", &bwd_w, py::call_guard<py::gil_scoped_release>());
}

const bindings::Registrar registrar(bind);

}  // namespace
}  // namespace lk::condensed_conv2d
