/* What host and device sides of routing share. Strides are in elements. */
#ifndef MOE_ROUTE_ARGS_H
#define MOE_ROUTE_ARGS_H

#include "moe/moe_route_rules.h"

struct moe_route_args {
    const void *logits; /* [tokens, experts] */
    const float *bias;  /* [experts] */
    float *weights;     /* [tokens, topk + shared] */
    int32_t *ids;       /* [tokens, topk + shared] */
    int64_t logits_row, weights_row, ids_row;
    int64_t tokens;
    int64_t block; /* CPU: tokens that one block of the grid handles */
    struct moe_route_scalars scalars;
    float shared_weight;
};

#endif
