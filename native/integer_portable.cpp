#define FTWT_ISA integer_portable
#include "integer_impl.h"
