/* The family moe_sum. */
#ifndef MOE_SUM_H
#define MOE_SUM_H

#include "moe_combine.h"

#endif
