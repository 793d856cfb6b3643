/* What host and device sides share of adding rows: moe_sum, moe_sum_reduce, apply_shuffle_mul_sum
 * and the end of the fused layer.
 *
 *     out[t] = scaling * sum over j of factors[t, j] row(t, j)
 *     row(t, j) = in + t in_token + j in_row, or with perm in + perm[t, j] in_row
 *
 * Strides are in elements. */
#ifndef MOE_COMBINE_ARGS_H
#define MOE_COMBINE_ARGS_H

#include "common/types.h"

struct moe_combine_args {
    const void *in;
    const int32_t *perm;  /* [tokens, topk]; outside [0, rows): adds nothing. NULL: none */
    const float *factors; /* [tokens, topk]; NULL: 1 */
    void *out;            /* [tokens, width] */
    int64_t in_token, in_row, perm_token, factors_token, out_token;
    int64_t tokens, rows;
    int64_t block; /* CPU: tokens that one block of the grid handles */
    int32_t topk, width;
    float scaling;
};

#endif
