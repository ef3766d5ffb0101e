// Tensors (Tensor.data_ptr()) and streams come in as integers, 0 for one that is not there.
#pragma once
#include <cstdint>

namespace lk::bindings {

using Address = std::uintptr_t;

inline void* at(Address a) { return reinterpret_cast<void*>(a); }

}  // namespace lk::bindings
