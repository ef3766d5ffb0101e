// How an operator's cpu.cpp, compiled once an instruction set, names its table and finds its function for a dtype.
#pragma once
#include "lk/vec.h"

namespace {

// Element types that fast kernels are compiled for; the others take the definition, tap by tap.
#if defined(LK_FLOAT_ONLY)
template <class T>
constexpr bool kFast = __is_same(T, float);
#else
template <class T>
constexpr bool kFast = true;
#endif

}  // namespace

#define LK_CAT2(a, b) a##b
#define LK_CAT(a, b) LK_CAT2(a, b)

// Returns CALL(T) for the element type of p.
#define LK_BY_DTYPE(CALL)  \
  switch (p.dtype) {       \
    case lk::DType::f32:   \
      return CALL(float);  \
    case lk::DType::f64:   \
      return CALL(double); \
    case lk::DType::bf16:  \
      return CALL(bf16);   \
    case lk::DType::f16:   \
      return CALL(f16);    \
  }                        \
  return lk::unsupported
