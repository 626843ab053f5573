#define FTWT_ISA integer_amx
#include "integer_impl.h"
