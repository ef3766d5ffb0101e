// How an operator's launchers find the function of a dtype.
#pragma once
#include "lk/simt.cuh"

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
