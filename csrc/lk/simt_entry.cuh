// How an operator's launchers find a dtype's bytes and its function.
#pragma once
#include "lk/simt.cuh"

namespace lk {

inline i64 size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

}  // namespace lk

// Returns run<T>(...) for the element type of p.
#define LK_BY_DTYPE(run, ...)                  \
  switch (p.dtype) {                           \
    case lk::DType::f32:                       \
      return run<float>(__VA_ARGS__);          \
    case lk::DType::f64:                       \
      return run<double>(__VA_ARGS__);         \
    case lk::DType::bf16:                      \
      return run<lk::simt::bf16>(__VA_ARGS__); \
    case lk::DType::f16:                       \
      return run<lk::simt::f16>(__VA_ARGS__);  \
  }                                            \
  return kUnsupported
