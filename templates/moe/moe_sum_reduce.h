/* The family moe_sum_reduce. */
#ifndef MOE_SUM_REDUCE_H
#define MOE_SUM_REDUCE_H

#include "moe_combine.h"

#endif
