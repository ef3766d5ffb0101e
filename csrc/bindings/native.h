// What the bindings of all CPU kernels begin with; shapes and dtypes were checked in Python.
#pragma once
#include <new>
#include <stdexcept>
#include <string>

#include "bindings/address.h"
#include "bindings/registry.h"
#include "lk/cpu.h"

namespace py = pybind11;
using lk::bindings::Address;

#ifdef LK_HAVE_avx2
#define LK_IF_AVX2(table) table
#else
#define LK_IF_AVX2(table) nullptr
#endif
#ifdef LK_HAVE_avx512
#define LK_IF_AVX512(table) table
#else
#define LK_IF_AVX512(table) nullptr
#endif

// In an op's namespace, after its Table: table(), the kernels of the best instruction set.
#define LK_TABLE_OF_KERNELS()                                                                                      \
  extern const Table table_baseline, table_avx2, table_avx512;                                                     \
  static const Table& table() {                                                                                    \
    static const Tables<Table> tables = {{&table_baseline, LK_IF_AVX2(&table_avx2), LK_IF_AVX512(&table_avx512)}}; \
    return *tables.get();                                                                                          \
  }

namespace lk::bindings {

inline void check(const char* op, int error) {
  if (error == out_of_memory) throw std::bad_alloc();
  if (error) throw std::runtime_error(std::string(op) + ": native kernel refused the call; please report this");
}

}  // namespace lk::bindings
