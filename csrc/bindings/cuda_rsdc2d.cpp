#include <pybind11/stl.h>

#include "bindings/native_cuda.h"
#include "bindings/rsdc2d_plan.h"
#include "rsdc2d/cuda.h"

namespace lk::rsdc2d {
namespace {

using bindings::at;

void check(int error) { bindings::check("rsdc2d", error, cuda::kUnsupported); }

void bind(py::module_& m) {
  using nogil = py::call_guard<py::gil_scoped_release>;
  m.attr("RSDC2D_KERNEL") = cuda::kMaxKernel;
  py::class_<Plan>(m, "Rsdc2dPlan")
      .def(py::init<const std::vector<i64>&, const std::vector<i64>&, const std::vector<i64>&>())
      .def(
          "fwd",
          [](const Plan& plan, Address x, Address w, Address b, Address taps, Address work, Address y, Address stream) {
            check(cuda::fwd(plan.with(at(taps), 1), at(stream), at(x), at(w), at(b), at(work), at(y)));
          },
          nogil())
      .def(
          "bwd_x",
          [](const Plan& plan, Address g, Address w, Address taps, Address work, Address gx, Address stream) {
            check(cuda::bwd_x(plan.with(at(taps), 1), at(stream), at(g), at(w), at(work), at(gx)));
          },
          nogil())
      .def(
          "bwd_w",
          [](const Plan& plan, Address g, Address x, Address taps, Address work, Address gw, Address stream) {
            check(cuda::bwd_w(plan.with(at(taps), 1), at(stream), at(g), at(x), at(work), at(gw)));
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
