// Addresses and streams come in as integers; shapes and dtypes were checked in Python.
#include <pybind11/stl.h>

#include <string>

#include "bindings/registry.h"
#include "bindings/rsdc2d_plan.h"
#include "lk/device.h"
#include "rsdc2d/cuda.h"

namespace py = pybind11;
using Address = std::uintptr_t;

namespace lk::rsdc2d {
namespace {

void* pointer(Address a) { return reinterpret_cast<void*>(a); }

void check(int error) {
  if (!error) return;
  if (error == cuda::kUnsupported)
    throw std::runtime_error("rsdc2d: no CUDA kernel takes this call; please report this");
  throw std::runtime_error(std::string("rsdc2d: CUDA error: ") + lk::cuda::error_string(error));
}

void bind(py::module_& m) {
  using nogil = py::call_guard<py::gil_scoped_release>;
  m.attr("RSDC2D_KERNEL") = cuda::kMaxKernel;
  py::class_<Plan>(m, "Rsdc2dPlan")
      .def(py::init<const std::vector<i64>&, const std::vector<i64>&, const std::vector<i64>&>())
      .def(
          "fwd",
          [](const Plan& plan, Address x, Address w, Address b, Address taps, Address work, Address y, Address stream) {
            check(cuda::fwd(plan.with(pointer(taps), 1), pointer(stream), pointer(x), pointer(w), pointer(b),
                            pointer(work), pointer(y)));
          },
          nogil())
      .def(
          "bwd_x",
          [](const Plan& plan, Address g, Address w, Address taps, Address work, Address gx, Address stream) {
            check(cuda::bwd_x(plan.with(pointer(taps), 1), pointer(stream), pointer(g), pointer(w), pointer(work),
                              pointer(gx)));
          },
          nogil())
      .def(
          "bwd_w",
          [](const Plan& plan, Address g, Address x, Address taps, Address work, Address gw, Address stream) {
            check(cuda::bwd_w(plan.with(pointer(taps), 1), pointer(stream), pointer(g), pointer(x), pointer(work),
                              pointer(gw)));
          },
          nogil())
      .def("work_size", [](const Plan& plan, int pass) { return cuda::work_size(plan.p, static_cast<Pass>(pass)); })
      .def("kernel", [](const Plan& plan, int pass) {
        return static_cast<int>(cuda::kernel_of(plan.p, static_cast<Pass>(pass)));
      });
}

const bindings::Registrar registrar(bind);

}  // namespace
}  // namespace lk::rsdc2d
