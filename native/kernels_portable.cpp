#define FTWT_ISA portable
#include "kernels_impl.h"
