#include "kernels.h"

#include <stdexcept>

namespace ftwt {

#if defined(__x86_64__)
namespace avx512 { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
#endif
namespace portable { extern const Kernels kernels; }

#if defined(FTWT_COUNT)
int64_t products[static_cast<int>(Product::kinds)];
#endif

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    names.push_back("avx512");
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
    if (isa == "avx512") return avx512::kernels;
    if (isa == "avx2") return avx2::kernels;
#endif
    return portable::kernels;
  }
  throw std::invalid_argument("isa=" + isa + ": this machine runs " + known);
}

}  // namespace ftwt
