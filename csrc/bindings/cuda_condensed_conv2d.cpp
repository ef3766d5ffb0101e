// Addresses and streams come in as integers; shapes and dtypes were checked in Python.
#include <pybind11/stl.h>

#include <string>

#include "bindings/condensed_conv2d_plan.h"
#include "bindings/registry.h"
#include "condensed_conv2d/cuda.h"
#include "lk/device.h"

namespace py = pybind11;
using Address = std::uintptr_t;

namespace lk::condensed_conv2d {
namespace {

void* pointer(Address a) { return reinterpret_cast<void*>(a); }

void check(int error) {
  if (!error) return;
  if (error == cuda::kUnsupported)
    throw std::runtime_error("condensed_conv2d: no CUDA kernel takes this call; please report this");
  throw std::runtime_error(std::string("condensed_conv2d: CUDA error: ") + lk::cuda::error_string(error));
}

void bind(py::module_& m) {
  py::class_<Plan>(m, "CondensedConv2dPlan")
      .def(py::init<const std::vector<i64>&>())
      .def(
          "fwd",
          [](const Plan& plan, Address x, Address w, Address scale, Address shift, Address index, Address y,
             Address stream) {
            check(cuda::fwd(plan.with(pointer(index), 1), pointer(stream), pointer(x), pointer(w), pointer(scale),
                            pointer(shift), pointer(y)));
          },
          py::call_guard<py::gil_scoped_release>())
      .def(
          "bwd",
          [](const Plan& plan, Address g, Address x, Address w, Address scale, Address shift, Address index,
             Address order, Address bounds, Address work, Address gx, Address gw, Address gscale, Address gshift,
             Address stream) {
            const cuda::Given given{pointer(g),
                                    pointer(x),
                                    pointer(w),
                                    pointer(scale),
                                    pointer(shift),
                                    static_cast<const i64*>(pointer(order)),
                                    static_cast<const i64*>(pointer(bounds)),
                                    pointer(work)};
            const cuda::Taken taken{pointer(gx), pointer(gw), pointer(gscale), pointer(gshift)};
            check(cuda::bwd(plan.with(pointer(index), 1), pointer(stream), given, taken));
          },
          py::call_guard<py::gil_scoped_release>())
      .def("work_size", [](const Plan& plan) { return cuda::work_size(plan.p); });
}

const bindings::Registrar registrar(bind);

}  // namespace
}  // namespace lk::condensed_conv2d
