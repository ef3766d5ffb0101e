#include <pybind11/stl.h>

#include <vector>

#include "bindings/native.h"
#include "rsdc2d/params.h"

namespace lk::rsdc2d {

LK_TABLE_OF_KERNELS()

namespace {

void check(int error) { bindings::check("rsdc2d", error); }

using bindings::at;

// Made once a shape and kept by the Python side.
struct Plan {
  Params p{};

  // head: n ci co h w ho wo kernel stride_h stride_w pad_h pad_w dilation_h dilation_w groups taps sets layout dtype
  // exact; x and y: strides n c h w.
  Plan(const std::vector<i64>& head, const std::vector<i64>& x, const std::vector<i64>& y) {
    if (head.size() != 20 || x.size() != 4 || y.size() != 4)
      throw std::invalid_argument("Plan: wrong number of values");
    const i64* v = head.data();
    for (i64* to : {&p.n, &p.ci, &p.co, &p.h, &p.w, &p.ho, &p.wo, &p.kernel, &p.stride_h, &p.stride_w, &p.pad_h,
                    &p.pad_w, &p.dilation_h, &p.dilation_w, &p.groups, &p.taps, &p.sets})
      *to = *v++;
    p.layout = static_cast<Layout>(v[0]);
    p.dtype = static_cast<DType>(v[1]);
    p.exact = static_cast<int>(v[2]);
    p.x = {x[0], x[1], x[2], x[3]};
    p.y = {y[0], y[1], y[2], y[3]};
  }

  Params with(Address cells, int threads) const {
    Params q = p;
    q.cells = static_cast<const i64*>(at(cells));
    q.threads = threads;
    return q;
  }
};

void bind(py::module_& m) {
  using nogil = py::call_guard<py::gil_scoped_release>;
  py::class_<Plan>(m, "Rsdc2dPlan")
      .def(py::init<const std::vector<i64>&, const std::vector<i64>&, const std::vector<i64>&>())
      .def(
          "fwd",
          [](const Plan& plan, Address x, Address w, Address b, Address taps, Address y, int threads) {
            check(table().fwd(plan.with(taps, threads), at(x), at(w), at(b), at(y)));
          },
          nogil())
      .def(
          "bwd_x",
          [](const Plan& plan, Address g, Address w, Address taps, Address gx, int threads) {
            check(table().bwd_x(plan.with(taps, threads), at(g), at(w), at(gx)));
          },
          nogil())
      .def(
          "bwd_w",
          [](const Plan& plan, Address g, Address x, Address taps, Address gw, int threads) {
            check(table().bwd_w(plan.with(taps, threads), at(g), at(x), at(gw)));
          },
          nogil())
      .def("ways", [](const Plan& plan, int threads) {
        std::vector<int> ways;
        for (const Pass pass : {Pass::fwd, Pass::bwd_x, Pass::bwd_w})
          ways.push_back(static_cast<int>(table().way(plan.with(0, threads), pass)));
        return ways;
      });
}

const bindings::Registrar registrar(bind);

}  // namespace
}  // namespace lk::rsdc2d
