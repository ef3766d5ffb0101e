// Addresses and streams come in as integers; shapes and dtypes were checked in Python.
#include <pybind11/stl.h>

#include <string>

#include "bindings/multi_dwconv2d_plan.h"
#include "bindings/registry.h"
#include "lk/device.h"
#include "multi_dwconv2d/cuda.h"

namespace py = pybind11;
using Address = std::uintptr_t;

namespace lk::multi_dwconv2d {
namespace {

struct CudaPlan : Plan {
  using Plan::Plan;
  cuda::Options options(Address stream = 0) const { return {p.exact, reinterpret_cast<void*>(stream)}; }
};

void* pointer(Address a) { return reinterpret_cast<void*>(a); }

void check(int error) {
  if (!error) return;
  if (error == cuda::kUnsupported)
    throw std::runtime_error("multi_dwconv2d: no CUDA kernel takes this call; please report this");
  throw std::runtime_error(std::string("multi_dwconv2d: CUDA error: ") + lk::cuda::error_string(error));
}

void bind(py::module_& m) {
  using nogil = py::call_guard<py::gil_scoped_release>;
  m.attr("MULTI_DWCONV2D_BRANCHES") = cuda::kMaxBranches;
  py::class_<CudaPlan>(m, "MultiDwconv2dPlan")
      .def(py::init<const std::vector<i64>&, const std::vector<i64>&, const std::vector<i64>&,
                    const std::vector<std::vector<i64>>&, bool>())
      .def(
          "fwd",
          [](const CudaPlan& plan, Address x, Address w, Address b, Address y, Address stream) {
            check(cuda::fwd(plan.p, plan.options(stream), pointer(x), pointer(w), pointer(b), pointer(y)));
          },
          nogil())
      .def(
          "bwd_x",
          [](const CudaPlan& plan, Address g, Address w, Address gx, Address stream) {
            check(cuda::bwd_x(plan.p, plan.options(stream), pointer(g), pointer(w), pointer(gx)));
          },
          nogil())
      .def(
          "bwd_w",
          [](const CudaPlan& plan, Address g, Address x, Address work, Address gw, Address stream) {
            check(cuda::bwd_w(plan.p, plan.options(stream), pointer(g), pointer(x), pointer(work), pointer(gw)));
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
