// What the bindings of all CUDA kernels begin with; shapes and dtypes were checked in Python.
#pragma once
#include <stdexcept>
#include <string>

#include "bindings/address.h"
#include "bindings/registry.h"
#include "lk/device.h"

namespace py = pybind11;
using lk::bindings::Address;

namespace lk::bindings {

// `unsupported`: the op's own code, beside those of the runtime.
inline void check(const char* op, int error, int unsupported) {
  if (!error) return;
  if (error == unsupported)
    throw std::runtime_error(std::string(op) + ": no CUDA kernel takes this call; please report this");
  throw std::runtime_error(std::string(op) + ": CUDA error: " + lk::cuda::error_string(error));
}

}  // namespace lk::bindings
