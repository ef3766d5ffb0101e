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

// `weights` of each branch are where they are. Those of tensors over foreign memory, which may lie a fraction of an
// element apart, are brought together.
void fwd_apart(const Plan& plan, Address x, const std::vector<Address>& weights, Address b, Address y, int threads) {
  constexpr i64 kSizes[] = {4, 8, 2, 2};
  const i64 size = kSizes[static_cast<int>(plan.p.dtype)];
  std::vector<Branch> branches = plan.branches;
  if (weights.size() != branches.size()) throw std::invalid_argument("fwd_apart: one weight a branch");
  std::vector<char> packed;
  bool whole = true;
  for (const Address w : weights) whole = whole && static_cast<i64>(w - weights[0]) % size == 0;
  for (std::size_t m = 0; m < branches.size(); ++m) {
    Branch& r = branches[m];
    const char* const from = static_cast<const char*>(bindings::at(weights[m]));
    if (whole)
      r.weight_start = static_cast<i64>(weights[m] - weights[0]) / size;
    else
      packed.insert(packed.end(), from, from + r.channels * r.kernel * r.kernel * size);
  }
  Params p = with_threads(plan, threads);
  p.branches = branches.data();
  check(table().fwd(p, bindings::at(x), whole ? bindings::at(weights[0]) : packed.data(), bindings::at(b),
                    bindings::at(y)));
}

void bind(py::module_& m) {
  using nogil = py::call_guard<py::gil_scoped_release>;
  py::class_<Plan>(m, "MultiDwconv2dPlan")
      .def(py::init<const std::vector<i64>&, const std::vector<i64>&, const std::vector<i64>&,
                    const std::vector<std::vector<i64>>&, bool>())
      .def(
          "fwd",
          [](const Plan& plan, Address x, Address w, Address b, Address y, int threads) {
            check(table().fwd(with_threads(plan, threads), reinterpret_cast<void*>(x), reinterpret_cast<void*>(w),
                              reinterpret_cast<void*>(b), reinterpret_cast<void*>(y)));
          },
          nogil())
      .def("fwd_apart", fwd_apart, nogil())
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
