// The CUDA module. It imports on machines without a driver; its functions then return the runtime's error text.
#include "bindings/registry.h"
#include "lk/device.h"

namespace py = pybind11;

namespace {

py::object value_or_error(int error, int value) {
  if (error) return py::str(lk::cuda::error_string(error));
  return py::int_(value);
}

}  // namespace

PYBIND11_MODULE(_cuda, m, py::mod_gil_not_used()) {
  m.def("runtime_version", &lk::cuda::runtime_version);
  m.def("driver_version", [] {
    int version = 0;
    const int error = lk::cuda::driver_version(&version);
    return value_or_error(error, version);
  });
  m.def("device_count", [] {
    int count = 0;
    const int error = lk::cuda::device_count(&count);
    return value_or_error(error, count);
  });
  m.def(
      "image_arch",
      [](int device) {
        int arch = 0;
        const int error = lk::cuda::image_arch(device, &arch);
        return value_or_error(error, arch);
      },
      py::arg("device"));
  m.def(
      "shared_memory",
      [](int device) {
        int bytes = 0;
        const int error = lk::cuda::shared_memory(device, &bytes);
        return value_or_error(error, bytes);
      },
      py::arg("device"));
  for (const auto* r = lk::bindings::Registrar::head(); r; r = r->next) r->bind(m);
}
