#include <pybind11/stl.h>

#include <vector>

#include "bindings/native.h"
#include "condensed_conv2d/params.h"

namespace lk::condensed_conv2d {

LK_TABLE_OF_KERNELS()

namespace {

using bindings::at;

// Made once a shape and kept by the Python side.
struct Plan {
  Params p{};

  // n c pixels co groups picked, strides of x: image pixel channel, layout dtype activation
  explicit Plan(const std::vector<i64>& v) {
    if (v.size() != 12) throw std::invalid_argument("Plan: wrong number of values");
    i64 i = 0;
    for (i64* to : {&p.n, &p.c, &p.pixels, &p.co, &p.groups, &p.picked, &p.image, &p.pixel, &p.channel}) *to = v[i++];
    p.layout = static_cast<Layout>(v[9]);
    p.dtype = static_cast<DType>(v[10]);
    p.act = static_cast<Act>(v[11]);
  }

  using Kernel = int (*)(const Params&, const void*, const void*, const void*, const void*, void*);
  void run(Kernel kernel, Address a, Address b, Address scale, Address shift, Address index, Address to,
           int threads) const {
    Params q = p;
    q.index = static_cast<const i64*>(at(index));
    q.threads = threads;
    const int error = kernel(q, at(a), at(b), at(scale), at(shift), at(to));
    if (error == bad_index)
      throw std::out_of_range("condensed_conv2d: index must be from 0 to " + std::to_string(p.c - 1) +
                              ", the channels of x");
    bindings::check("condensed_conv2d", error);
  }
  void fwd(Address x, Address w, Address scale, Address shift, Address index, Address y, int threads) const {
    run(table().fwd, x, w, scale, shift, index, y, threads);
  }
  void bwd_w(Address g, Address x, Address scale, Address shift, Address index, Address gw, int threads) const {
    run(table().bwd_w, g, x, scale, shift, index, gw, threads);
  }
};

void bind(py::module_& m) {
  py::class_<Plan>(m, "CondensedConv2dPlan")
      .def(py::init<const std::vector<i64>&>())
      .def("fwd", &Plan::fwd, py::call_guard<py::gil_scoped_release>())
      .def("bwd_w", &Plan::bwd_w, py::call_guard<py::gil_scoped_release>());
}

const bindings::Registrar registrar(bind);

}  // namespace
}  // namespace lk::condensed_conv2d
