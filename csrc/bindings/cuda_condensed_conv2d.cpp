#include <pybind11/stl.h>

#include "bindings/condensed_conv2d_plan.h"
#include "bindings/native_cuda.h"
#include "condensed_conv2d/cuda.h"

namespace lk::condensed_conv2d {
namespace {

using bindings::at;

void check(int error) { bindings::check("condensed_conv2d", error, cuda::kUnsupported); }

void bind(py::module_& m) {
  py::class_<Plan>(m, "CondensedConv2dPlan")
      .def(py::init<const std::vector<i64>&>())
      .def(
          "fwd",
          [](const Plan& plan, Address x, Address w, Address scale, Address shift, Address index, Address y,
             Address stream) {
            check(cuda::fwd(plan.with(at(index), 1), at(stream), at(x), at(w), at(scale), at(shift), at(y)));
          },
          py::call_guard<py::gil_scoped_release>())
      .def(
          "bwd",
          [](const Plan& plan, Address g, Address x, Address w, Address scale, Address shift, Address index,
             Address order, Address bounds, Address work, Address gx, Address gw, Address gscale, Address gshift,
             Address stream) {
            const cuda::Given given{at(g),
                                    at(x),
                                    at(w),
                                    at(scale),
                                    at(shift),
                                    static_cast<const i64*>(at(order)),
                                    static_cast<const i64*>(at(bounds)),
                                    at(work)};
            const cuda::Taken taken{at(gx), at(gw), at(gscale), at(gshift)};
            check(cuda::bwd(plan.with(at(index), 1), at(stream), given, taken));
          },
          py::call_guard<py::gil_scoped_release>())
      .def("work_size", [](const Plan& plan) { return cuda::work_size(plan.p); });
}

const bindings::Registrar registrar(bind);

}  // namespace
}  // namespace lk::condensed_conv2d
