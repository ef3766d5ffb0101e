#include <pybind11/stl.h>

#include "bindings/mldn_block_plan.h"
#include "bindings/native_cuda.h"
#include "mldn_block/cuda.h"

namespace lk::mldn_block {
namespace {

using bindings::at;

void check(int error) { bindings::check("mldn_block", error, cuda::kUnsupported); }

void bind(py::module_& m) {
  py::class_<Plan>(m, "MldnBlockPlan")
      .def(py::init<const std::vector<i64>&, double, i64, double, std::vector<i64>>())
      .def(
          "infer",
          [](const Plan& plan, const std::vector<Address>& in, int most, Address work, Address y, Address stream) {
            check(cuda::infer(plan.with(1), at(stream), inputs(in, 0), most, at(work), at(y)));
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
