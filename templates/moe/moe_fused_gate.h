/* The family moe_fused_gate. */
#ifndef MOE_FUSED_GATE_H
#define MOE_FUSED_GATE_H

#include "moe_route.h"

#endif
