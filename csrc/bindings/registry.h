// Each op's binding file names one function that adds its names to the module; no shared list to edit.
#pragma once
#include <pybind11/pybind11.h>

namespace lk::bindings {

using Binder = void (*)(pybind11::module_&);

struct Registrar {
  Binder bind;
  const Registrar* next;
  explicit Registrar(Binder b) : bind(b), next(head()) { head() = this; }
  static const Registrar*& head() {
    static const Registrar* first = nullptr;
    return first;
  }
};

}  // namespace lk::bindings
