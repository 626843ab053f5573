#define FTWT_ISA avx512
#include "kernels_impl.h"
