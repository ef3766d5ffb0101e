#include "bindings/registry.h"
#include "lk/cpu.h"
#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.def("isa", [] { return lk::isa_name(lk::isa()); });
  m.def("isas", [] {
    py::dict all;
    for (int i = 0; i < lk::kIsas; ++i) {
      const auto one = static_cast<lk::Isa>(i);
      all[lk::isa_name(one)] = py::make_tuple(lk::isa_built(one), lk::isa_supported(one));
    }
    return all;
  });
#ifdef _OPENMP
  m.attr("openmp") = true;
  m.def("omp_max_threads", [] { return omp_get_max_threads(); });
#else
  m.attr("openmp") = false;
  m.def("omp_max_threads", [] { return 1; });
#endif
  for (const auto* r = lk::bindings::Registrar::head(); r; r = r->next) r->bind(m);
}
