#include "lk/cpu.h"

#include <cstdlib>
#include <cstring>

namespace lk {
namespace {

struct Buffer {
  void* data = nullptr;
  std::size_t size = 0;
  ~Buffer() { std::free(data); }
};

Isa best() {
  for (int i = kIsas - 1; i > 0; --i)
    if (isa_built(static_cast<Isa>(i)) && isa_supported(static_cast<Isa>(i))) return static_cast<Isa>(i);
  return Isa::baseline;
}

Isa pick() {
  const char* want = std::getenv("LIGHTKERNELS_CPU_ISA");
  if (want && *want)
    for (int i = 0; i < kIsas; ++i) {
      const Isa one = static_cast<Isa>(i);
      if (!std::strcmp(want, isa_name(one)) && isa_built(one) && isa_supported(one)) return one;
    }
  return best();
}

}  // namespace

const char* isa_name(Isa i) {
  switch (i) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    default:
      return "baseline";
  }
}

bool isa_built(Isa i) {
#ifdef LK_HAVE_avx2
  if (i == Isa::avx2) return true;
#endif
#ifdef LK_HAVE_avx512
  if (i == Isa::avx512) return true;
#endif
  return i == Isa::baseline;
}

bool isa_supported(Isa i) {
#if defined(__x86_64__) && defined(__GNUC__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (i == Isa::avx2) return avx2;
  if (i == Isa::avx512)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
#endif
  return i == Isa::baseline;
}

Isa isa() {
  static const Isa chosen = pick();
  return chosen;
}

void* scratch(std::size_t bytes) {
  static thread_local Buffer buffer;
  if (bytes > buffer.size) {
    std::free(buffer.data);
    const std::size_t rounded = (bytes + 4095) / 4096 * 4096;
    buffer.data = std::aligned_alloc(64, rounded);
    buffer.size = buffer.data ? rounded : 0;
  }
  return buffer.data;
}

}  // namespace lk
