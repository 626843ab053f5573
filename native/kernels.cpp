#include "kernels.h"

#include <stdexcept>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ftwt {

#if defined(__x86_64__)
namespace avx512 { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
#endif
namespace portable { extern const Kernels kernels; }

#if defined(FTWT_COUNT)
int64_t products[static_cast<int>(Product::kinds)];
#endif

#if defined(__x86_64__)
// Whether the processor has a matrix unit and the system lets this process use it.
static bool may_use_tiles() {
#if defined(FTWT_EMULATE)
  return true;
#elif defined(__linux__)
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return __builtin_cpu_supports("amx-int8") && __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("avx512vbmi") && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}
#endif

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    if (may_use_tiles()) names.push_back("amx");
    names.push_back("avx512");
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    names.push_back("avx2");
#endif
  names.push_back("portable");
  return names;
}

const Kernels& find_kernels(const std::string& isa) {
  std::string known;
  for (const std::string& name : available_isas()) {
    if (name != isa) {
      known += (known.empty() ? "" : ", ") + name;
      continue;
    }
#if defined(__x86_64__)
    if (isa == "amx" || isa == "avx512") return avx512::kernels;  // amx is for integers
    if (isa == "avx2") return avx2::kernels;
#endif
    return portable::kernels;
  }
  throw std::invalid_argument("isa=" + isa + ": this machine runs " + known);
}

}  // namespace ftwt
