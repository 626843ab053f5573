#include "integer.h"

namespace ftwt {

#if defined(__x86_64__)
namespace integer_amx { extern const IntegerKernels kernels; }
namespace integer_vbmi { extern const IntegerKernels kernels; }
namespace integer_vnni { extern const IntegerKernels kernels; }
namespace integer_avx2 { extern const IntegerKernels kernels; }
#endif
namespace integer_portable { extern const IntegerKernels kernels; }

// AVX-512 is one name for machines with and without its instructions for bytes, and for their shuffles.
const IntegerKernels& find_integer_kernels([[maybe_unused]] const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "amx") return integer_amx::kernels;
  __builtin_cpu_init();
  if (isa == "avx512" && __builtin_cpu_supports("avx512vnni")) {
#if defined(FTWT_EMULATE)
    const bool shuffles = true;
#else
    const bool shuffles = __builtin_cpu_supports("avx512vbmi");
#endif
    return shuffles ? integer_vbmi::kernels : integer_vnni::kernels;
  }
  if (isa != "portable") return integer_avx2::kernels;
#endif
  return integer_portable::kernels;
}

}  // namespace ftwt
