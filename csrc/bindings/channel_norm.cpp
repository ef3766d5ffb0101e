#include "bindings/native.h"
#include "channel_norm/params.h"

namespace lk::channel_norm {

LK_TABLE_OF_KERNELS()

namespace {

void check(int error) { bindings::check("channel_norm", error); }

const float* in(Address a) { return reinterpret_cast<const float*>(a); }
float* out(Address a) { return reinterpret_cast<float*>(a); }
double* sums(Address a) { return reinterpret_cast<double*>(a); }

Params params(i64 n, i64 c, i64 pixels, i64 groups, int act, int threads) {
  return {n, c, pixels, groups, static_cast<Act>(act), threads};
}

void bind(py::module_& m) {
  using nogil = py::call_guard<py::gil_scoped_release>;
  py::class_<Params>(m, "ChannelNorm")
      .def(py::init(&params))
      .def(
          "moments",
          [](const Params& p, Address z, Address g, Address to) { check(table().moments(p, in(z), in(g), sums(to))); },
          nogil())
      .def(
          "apply",
          [](const Params& p, Address z, Address scale, Address shift, Address y) {
            check(table().apply(p, in(z), in(scale), in(shift), out(y)));
          },
          nogil())
      .def(
          "reduce",
          [](const Params& p, Address z, Address g, Address scale, Address shift, Address centre, Address to) {
            check(table().reduce(p, in(z), in(g), in(scale), in(shift), in(centre), sums(to)));
          },
          nogil())
      .def(
          "backward",
          [](const Params& p, Address z, Address g, Address scale, Address shift, Address factors, Address gz) {
            check(table().backward(p, in(z), in(g), in(scale), in(shift), in(factors), out(gz)));
          },
          nogil())
      .def(
          "mixed_moments",
          [](const Params& p, i64 inputs, i64 groups, Address d, Address w, Address g, Address to) {
            check(table().mixed_moments(p, {inputs, groups}, in(d), in(w), in(g), sums(to)));
          },
          nogil())
      .def(
          "mixed_apply",
          [](const Params& p, i64 inputs, i64 groups, Address d, Address w, Address scale, Address shift, Address base,
             Address y) {
            const Mix mix{inputs, groups};
            check(table().mixed_apply(p, mix, in(d), in(w), in(scale), in(shift), in(base), out(y)));
          },
          nogil());
}

const bindings::Registrar registrar(bind);

}  // namespace
}  // namespace lk::channel_norm
