// Addresses come in as integers (Tensor.data_ptr()); shapes and dtypes were checked in Python.
#include <pybind11/stl.h>

#include "bindings/multi_dwconv2d_plan.h"
#include "bindings/registry.h"

namespace py = pybind11;
using Address = std::uintptr_t;

namespace lk::multi_dwconv2d {

extern const Table table_baseline;
#ifdef LK_HAVE_avx2
extern const Table table_avx2;
#endif
#ifdef LK_HAVE_avx512
extern const Table table_avx512;
#endif

namespace {

const Table& table() {
  static const Tables<Table> tables = {{
      &table_baseline,
#ifdef LK_HAVE_avx2
      &table_avx2,
#else
      nullptr,
#endif
#ifdef LK_HAVE_avx512
      &table_avx512,
#else
      nullptr,
#endif
  }};
  return *tables.get();
}

void check(int error) {
  if (error == out_of_memory) throw std::bad_alloc();
  if (error) throw std::runtime_error("multi_dwconv2d: native kernel refused the call; please report this");
}

Params with_threads(const Plan& plan, int threads) {
  Params p = plan.p;
  p.threads = threads;
  return p;
}

void bind(py::module_& m) {
  using nogil = py::call_guard<py::gil_scoped_release>;
  py::class_<Plan>(m, "MultiDwconv2dPlan")
      .def(py::init<const std::vector<i64>&, const std::vector<i64>&, const std::vector<i64>&,
                    const std::vector<std::vector<i64>>&>())
      .def(
          "fwd",
          [](const Plan& plan, Address x, Address w, Address b, Address y, int threads) {
            check(table().fwd(with_threads(plan, threads), reinterpret_cast<void*>(x), reinterpret_cast<void*>(w),
                              reinterpret_cast<void*>(b), reinterpret_cast<void*>(y)));
          },
          nogil())
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
