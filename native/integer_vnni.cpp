#define FTWT_ISA integer_vnni
#include "integer_impl.h"
