// What every CPU kernel file may use: element types, instruction sets, per-thread scratch, error codes.
#pragma once
#include <cstddef>
#include <cstdint>

namespace lk {

using i64 = std::int64_t;

enum class DType : int { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };

// Returned by every kernel entry; bindings turn anything but ok into an exception.
enum Error : int { ok = 0, out_of_memory = 1, unsupported = 2 };

enum class Isa : int { baseline = 0, avx2 = 1, avx512 = 2 };
constexpr int kIsas = 3;

// The instruction set in use: LIGHTKERNELS_CPU_ISA if it names one that this build and this processor have,
// else the best that automatic choice may take. Decided once.
Isa isa();
const char* isa_name(Isa i);
bool isa_built(Isa i);
bool isa_supported(Isa i);

// 64-byte aligned memory owned by the calling thread, valid until its next call; nullptr if there is none.
void* scratch(std::size_t bytes);

// One row of function pointers an instruction set; an entry left null was not built.
template <class Table>
struct Tables {
  const Table* entry[kIsas];
  const Table* get() const {
    for (int i = static_cast<int>(isa()); i >= 0; --i)
      if (entry[i]) return entry[i];
    return nullptr;
  }
};

}  // namespace lk
