#include <pybind11/stl.h>

#include "bindings/multi_dwconv2d_plan.h"
#include "bindings/native_cuda.h"
#include "multi_dwconv2d/cuda.h"

namespace lk::multi_dwconv2d {
namespace {

struct CudaPlan : Plan {
  using Plan::Plan;
  cuda::Options options(Address stream = 0) const { return {p.exact, reinterpret_cast<void*>(stream)}; }
};

using bindings::at;

void check(int error) { bindings::check("multi_dwconv2d", error, cuda::kUnsupported); }

void bind(py::module_& m) {
  using nogil = py::call_guard<py::gil_scoped_release>;
  m.attr("MULTI_DWCONV2D_BRANCHES") = cuda::kMaxBranches;
  py::class_<CudaPlan>(m, "MultiDwconv2dPlan")
      .def(py::init<const std::vector<i64>&, const std::vector<i64>&, const std::vector<i64>&,
                    const std::vector<std::vector<i64>>&, bool>())
      .def(
          "fwd",
          [](const CudaPlan& plan, Address x, Address w, Address b, Address y, Address stream) {
            check(cuda::fwd(plan.p, plan.options(stream), at(x), at(w), at(b), at(y)));
          },
          nogil())
      .def(
          "bwd_x",
          [](const CudaPlan& plan, Address g, Address w, Address gx, Address stream) {
            check(cuda::bwd_x(plan.p, plan.options(stream), at(g), at(w), at(gx)));
          },
          nogil())
      .def(
          "bwd_w",
          [](const CudaPlan& plan, Address g, Address x, Address work, Address gw, Address stream) {
            check(cuda::bwd_w(plan.p, plan.options(stream), at(g), at(x), at(work), at(gw)));
          },
          nogil())
      .def("work_size", [](const CudaPlan& plan) { return cuda::work_size(plan.p, plan.options()); })
      .def("kernels", [](const CudaPlan& plan, int pass) {
        return cuda::kernels(plan.p, plan.options(), static_cast<cuda::Pass>(pass));
      });
}

const bindings::Registrar registrar(bind);

}  // namespace
}  // namespace lk::multi_dwconv2d
