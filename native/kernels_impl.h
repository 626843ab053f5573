// The kernels of one instruction set: FTWT_ISA names it, the compiler's flags choose it.
// Everything lies in a namespace of that name, so that no function compiled for a newer machine
// can be taken for one of the same name compiled for any machine.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "kernels.h"

#define FTWT_STRING2(x) #x
#define FTWT_STRING(x) FTWT_STRING2(x)

namespace ftwt::FTWT_ISA {

#include "vector.h"
#include "direct.h"
#include "depthwise.h"
#include "winograd.h"
#include "dot.h"
#include "panel.h"
#include "simple.h"

extern const Kernels kernels;
const Kernels kernels = {
    FTWT_STRING(FTWT_ISA), plain::stage,  plain::direct,    plain::depthwise, wino::patches,
    wino::winograd,        dots::interleave, dots::dot,        panels::panel,    simple::affine,
    simple::combine,       simple::planes, simple::pool,    simple::columns,
};

}  // namespace ftwt::FTWT_ISA
