/* The family topk_softmax. */
#ifndef TOPK_SOFTMAX_H
#define TOPK_SOFTMAX_H

#include "moe_route.h"

#endif
