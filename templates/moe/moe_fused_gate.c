/* moe_fused_gate: its kernels and rules are moe_route's. */
#define QUERN_DEF "moe/moe_fused_gate.def"
#include <quern/family_def.h>

#include <stddef.h>

#include "moe_route.h"

QUERN_STATIC_ASSERT((int)ARRAY_logits == (int)MOE_ROUTE_LOGITS &&
                        (int)ARRAY_bias == (int)MOE_ROUTE_BIAS &&
                        (int)ARRAY_weights == (int)MOE_ROUTE_WEIGHTS &&
                        (int)ARRAY_ids == (int)MOE_ROUTE_IDS &&
                        offsetof(struct values, scaling) == MOE_ROUTE_SCALING * 8,
                    "moe_route's order");

const struct quern_family quern_family_moe_fused_gate = {
    QUERN_FAMILY_TABLES(moe_fused_gate),
    .folder = "moe",
    .doc = "the experts of each token by groups, with shared ones behind",
    .variants = moe_route_variants,
    .validate = moe_route_validate,
    .inputs = moe_route_inputs,
    .units = moe_route_units,
    .reference = moe_route_reference,
    .tolerance = moe_route_tolerance,
    .cost = moe_route_cost,
};
