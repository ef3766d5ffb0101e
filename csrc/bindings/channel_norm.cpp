#include "bindings/native.h"
#include "channel_norm/norm.h"

namespace lk::channel_norm {

LK_TABLE_OF_KERNELS()

namespace {

void check(int error) { bindings::check("channel_norm", error); }

const float* in(Address a) { return reinterpret_cast<const float*>(a); }
float* out(Address a) { return reinterpret_cast<float*>(a); }

Params params(i64 n, i64 c, i64 pixels, i64 groups, i64 g_planes, int act, int threads) {
  return {n, c, pixels, groups, g_planes, static_cast<Act>(act), threads};
}
Source map(Address z) { return {in(z), {}, nullptr, nullptr}; }
Source mixed(i64 inputs, i64 groups, i64 planes, Address d, Address w) {
  return {nullptr, {inputs, groups, planes}, in(d), in(w)};
}
Norm norm(Address weight, Address bias, double eps) { return {in(weight), in(bias), eps, nullptr, nullptr, 0}; }

double product_of(const Params& p, const Norm& norm, const Source& from, Address g) {
  double found = 0;
  check(product(table(), p, norm, from, in(g), &found));
  return found;
}

void bind(py::module_& m) {
  using nogil = py::call_guard<py::gil_scoped_release>;
  py::class_<Params>(m, "ChannelNorm")
      .def(py::init(&params))
      .def(
          "apply",
          [](const Params& p, Address z, Address scale, Address shift, Address base, Address y) {
            check(table().apply(p, in(z), in(scale), in(shift), in(base), out(y)));
          },
          nogil())
      .def(
          "forward",
          [](const Params& p, Address z, Address weight, Address bias, double eps, Address running_mean,
             Address running_var, double share, Address kept, Address base, Address y) {
            const Norm norm{in(weight), in(bias), eps, out(running_mean), out(running_var), share};
            check(forward(table(), p, norm, map(z), out(kept), in(base), out(y)));
          },
          nogil())
      .def(
          "backward",
          [](const Params& p, Address z, Address g, Address weight, Address bias, Address kept, Address found,
             Address gz) {
            double own = 0;
            check(backward(table(), p, norm(weight, bias, 0), map(z), in(g), out(kept), out(found), out(gz), nullptr,
                           &own));
            return own;
          },
          nogil())
      .def(
          "product",
          [](const Params& p, Address z, Address g, Address weight, Address bias, double eps) {
            return product_of(p, norm(weight, bias, eps), map(z), g);
          },
          nogil())
      .def(
          "mixed_forward",
          [](const Params& p, i64 inputs, i64 groups, i64 planes, Address d, Address w, Address weight, Address bias,
             double eps, Address running_mean, Address running_var, double share, Address kept, Address base,
             Address y) {
            const Norm norm{in(weight), in(bias), eps, out(running_mean), out(running_var), share};
            check(forward(table(), p, norm, mixed(inputs, groups, planes, d, w), out(kept), in(base), out(y)));
          },
          nogil())
      .def(
          "mixed_apply",
          [](const Params& p, i64 inputs, i64 groups, i64 planes, Address d, Address w, Address scale, Address shift,
             Address base, Address y) {
            const Mix mix{inputs, groups, planes};
            check(table().mixed_apply(p, mix, in(d), in(w), in(scale), in(shift), in(base), out(y)));
          },
          nogil())
      .def(
          "mixed_backward",
          [](const Params& p, i64 inputs, i64 groups, i64 planes, Address d, Address w, Address g, Address weight,
             Address bias, Address kept, Address found, Address gd, Address gw) {
            double own = 0;
            check(backward(table(), p, norm(weight, bias, 0), mixed(inputs, groups, planes, d, w), in(g), out(kept),
                           out(found), out(gd), out(gw), &own));
            return own;
          },
          nogil())
      .def(
          "mixed_product",
          [](const Params& p, i64 inputs, i64 groups, i64 planes, Address d, Address w, Address g, Address weight,
             Address bias,
             double eps) { return product_of(p, norm(weight, bias, eps), mixed(inputs, groups, planes, d, w), g); },
          nogil());
}

const bindings::Registrar registrar(bind);

}  // namespace
}  // namespace lk::channel_norm
