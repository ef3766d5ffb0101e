// Addresses come in as integers (Tensor.data_ptr()); shapes and dtypes were checked in Python.
#include <pybind11/stl.h>

#include <stdexcept>
#include <vector>

#include "bindings/registry.h"
#include "multi_dwconv2d/params.h"

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

// Owns the branch list that Params points to; made once a shape and kept by the Python side.
struct Plan {
  Params p{};
  std::vector<Branch> branches;

  // head: n c h w ho wo c_out stride_h stride_w combine layout dtype; x and y: strides n c h w;
  // rows: kernel dilation in_start out_start channels weight_start of each branch.
  Plan(const std::vector<i64>& head, const std::vector<i64>& x, const std::vector<i64>& y,
       const std::vector<std::vector<i64>>& rows) {
    if (head.size() != 12 || x.size() != 4 || y.size() != 4)
      throw std::invalid_argument("Plan: wrong number of values");
    for (const auto& r : rows) {
      if (r.size() != 6) throw std::invalid_argument("Plan: a branch has six values");
      branches.push_back({r[0], r[1], r[2], r[3], r[4], r[5]});
    }
    p = {head[0],
         head[1],
         head[2],
         head[3],
         head[4],
         head[5],
         head[6],
         head[7],
         head[8],
         {x[0], x[1], x[2], x[3]},
         {y[0], y[1], y[2], y[3]},
         static_cast<Combine>(head[9]),
         static_cast<Layout>(head[10]),
         static_cast<DType>(head[11]),
         static_cast<i64>(branches.size()),
         branches.data(),
         1};
  }
  Plan(const Plan&) = delete;
};

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
