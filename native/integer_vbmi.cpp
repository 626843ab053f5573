#define FTWT_ISA integer_vbmi
#include "integer_impl.h"
