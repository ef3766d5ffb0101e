// The CUDA module. It imports on machines without a driver; its functions then return the runtime's error text.
#include "bindings/registry.h"
#include "lk/device.h"

namespace py = pybind11;

namespace {

// What a function gives in its last argument, or the error's text.
template <class... Args, class... Given>
py::object value_or_error(int (*ask)(Args...), Given... given) {
  int value = 0;
  if (const int error = ask(given..., &value)) return py::str(lk::cuda::error_string(error));
  return py::int_(value);
}

}  // namespace

PYBIND11_MODULE(_cuda, m, py::mod_gil_not_used()) {
  m.def("runtime_version", &lk::cuda::runtime_version);
  m.def("driver_version", [] { return value_or_error(lk::cuda::driver_version); });
  m.def("device_count", [] { return value_or_error(lk::cuda::device_count); });
  m.def("image_arch", [](int device) { return value_or_error(lk::cuda::image_arch, device); }, py::arg("device"));
  m.def("shared_memory", [](int device) { return value_or_error(lk::cuda::shared_memory, device); }, py::arg("device"));
  for (const auto* r = lk::bindings::Registrar::head(); r; r = r->next) r->bind(m);
}
