// Which set of kernels runs here: the widest the processor has. TMEM_CPU=baseline|avx2|avx512|avx512bf16 in the environment asks
// for another one, read once; a set that this processor cannot run, or that was not built, is refused.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace tmem {

extern const Kernels kernels_baseline;
#ifdef TMEM_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512bf16;
#endif

static const Kernels& choose() {
  const char* asked = std::getenv("TMEM_CPU");
  const auto wanted = [asked](const Kernels& k) { return !asked || !*asked || std::string(asked) == k.instructions; };
#ifdef TMEM_X86
  // Processors with both have F16C too: together they are the third level of x86-64.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16") && wanted(kernels_avx512bf16)) return kernels_avx512bf16;
  if (avx512 && wanted(kernels_avx512)) return kernels_avx512;
  if (avx2 && wanted(kernels_avx2)) return kernels_avx2;
#endif
  if (wanted(kernels_baseline)) return kernels_baseline;
  throw std::runtime_error("TMEM_CPU must name a set of kernels this processor runs (baseline, avx2, avx512 or avx512bf16), got '" +
                           std::string(asked) + "'; unset it to let tmem choose");
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace tmem
