#define FTWT_ISA integer_avx2
#include "integer_impl.h"
