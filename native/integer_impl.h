// The kernels on eight-bit maps of one instruction set, as kernels_impl.h. Compiled without
// contractions: each step is rounded by itself, as the reference engine does it.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "integer.h"

#define FTWT_STRING2(x) #x
#define FTWT_STRING(x) FTWT_STRING2(x)

namespace ftwt::FTWT_ISA {

#include "vector.h"
#include "integer_vector.h"
#include "integer_simple.h"
#include "integer_layout.h"
#include "integer_direct.h"
#include "integer_dot.h"
#include "integer_depthwise.h"
#if defined(__AMX_INT8__)
#include "integer_tiles.h"
#endif

#if defined(__AMX_INT8__)
constexpr bool kTiles = true;
constexpr auto direct = tiles::direct;
#else
constexpr bool kTiles = false;
constexpr auto direct = integers::direct;
#endif

extern const IntegerKernels kernels;
const IntegerKernels kernels = {
    FTWT_STRING(FTWT_ISA), kDword, kTiles, integers::kOrders, integers::kPicks, integers::blend, integers::stage,
    integers::pack, direct, integers::arrange, integers::dot, integers::depthwise, integers::planes, integers::pool,
};

}  // namespace ftwt::FTWT_ISA
