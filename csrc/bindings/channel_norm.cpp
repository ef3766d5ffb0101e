// Addresses come in as integers (Tensor.data_ptr()); shapes and dtypes were checked in Python.
#include <stdexcept>

#include "bindings/registry.h"
#include "channel_norm/params.h"

namespace py = pybind11;
using Address = std::uintptr_t;

namespace lk::channel_norm {

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
  if (error) throw std::runtime_error("channel_norm: native kernel refused the call; please report this");
}

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
          nogil());
}

const bindings::Registrar registrar(bind);

}  // namespace
}  // namespace lk::channel_norm
