// Addresses and streams come in as integers; shapes and dtypes were checked in Python.
#include <pybind11/stl.h>

#include <string>

#include "bindings/mldn_block_plan.h"
#include "bindings/registry.h"
#include "lk/device.h"
#include "mldn_block/cuda.h"

namespace py = pybind11;
using Address = std::uintptr_t;

namespace lk::mldn_block {
namespace {

void* pointer(Address a) { return reinterpret_cast<void*>(a); }

void check(int error) {
  if (!error) return;
  if (error == cuda::kUnsupported)
    throw std::runtime_error("mldn_block: no CUDA kernel takes this call; please report this");
  throw std::runtime_error(std::string("mldn_block: CUDA error: ") + lk::cuda::error_string(error));
}

void bind(py::module_& m) {
  py::class_<Plan>(m, "MldnBlockPlan")
      .def(py::init<const std::vector<i64>&, double, i64, double, std::vector<i64>>())
      .def(
          "infer",
          [](const Plan& plan, const std::vector<Address>& in, int most, Address work, Address y, Address stream) {
            check(cuda::infer(plan.with(1), pointer(stream), inputs(in, 0), most, pointer(work), pointer(y)));
          },
          py::call_guard<py::gil_scoped_release>())
      .def("cut",
           [](const Plan& plan, int most) {
             const cuda::Cut c = cuda::cut(plan.with(1), most);
             return py::make_tuple(c.rows, c.bands, c.together, c.resident, c.shared);
           })
      .def("work_size", [](const Plan& plan) { return cuda::work_size(plan.with(1)); });
}

const bindings::Registrar registrar(bind);

}  // namespace
}  // namespace lk::mldn_block
