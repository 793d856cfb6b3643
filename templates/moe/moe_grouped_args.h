/* What host and device sides of moe_grouped_route share. */
#ifndef MOE_GROUPED_ARGS_H
#define MOE_GROUPED_ARGS_H

#include "moe/moe_args.h"
#include "moe/moe_route_rules.h"

struct moe_grouped_route_args {
    struct moe_args moe;
    struct moe_route_scalars scalars;
    float *weights; /* [slots] */
    int32_t *ids;   /* [slots]: which of w13 and w2, -1: none */
};

#endif
