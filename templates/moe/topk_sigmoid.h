/* The family topk_sigmoid. */
#ifndef TOPK_SIGMOID_H
#define TOPK_SIGMOID_H

#include "moe_route.h"

#endif
