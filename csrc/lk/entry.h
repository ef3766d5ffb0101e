// How an operator's cpu.cpp, compiled once an instruction set, names its table and finds its function for a dtype.
#pragma once
#include "lk/vec.h"

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
