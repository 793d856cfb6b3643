/* Experts of many tokens: one block of the grid chooses those of args->block tokens. */
#include "moe/moe_route_token.h"
#include "moe/moe_route_args.h"

#ifndef SHARED
#define SHARED 0 /* shared experts behind a token's own */
#endif

void moe_route_main(const struct moe_route_args *args, uint32_t x, uint32_t y, uint32_t z)
{
    (void)y, (void)z;
    int64_t begin = (int64_t)x * args->block, end = begin + args->block;
    end = end < args->tokens ? end : args->tokens;
    for (int64_t token = begin; token < end; token++) {
        int32_t *ids = args->ids + token * args->ids_row;
        float *weights = args->weights + token * args->weights_row;
        route_token(element(ROUTE_DTYPE, args->logits, token * args->logits_row), args->bias,
                    &args->scalars, ids, weights);
        for (int i = 0; i < SHARED; i++) {
            ids[ROUTE_TOPK + i] = ROUTE_EXPERTS + i;
            weights[ROUTE_TOPK + i] = args->shared_weight;
        }
    }
}
