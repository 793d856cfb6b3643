/* What host and device sides of moe share. */
#ifndef MOE_ARGS_H
#define MOE_ARGS_H

#include "common/types.h"

/* Strides in elements; the last dimension is dense. out is x with inplace=1. */
struct moe_args {
    const void *x, *logits, *w13, *w2;
    const float *bias;         /* or NULL */
    const int32_t *expert_map; /* or NULL */
    const float *w13_scale, *w2_scale;
    void *out;
    int64_t x_row, logits_row, out_row;
    int64_t w13_expert, w13_row, w2_expert, w2_row;
    int64_t w13_scale_expert, w2_scale_expert;
    int64_t tokens;
    float softcap; /* 0: none */
    float scaling;
    float limit; /* infinity: none */
};

#endif
