/* The family apply_shuffle_mul_sum. */
#ifndef APPLY_SHUFFLE_MUL_SUM_H
#define APPLY_SHUFFLE_MUL_SUM_H

#include "moe_combine.h"

#endif
