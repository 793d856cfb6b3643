/* What host and device sides of kda_step share. Strides are in elements. */
#ifndef KDA_STEP_ARGS_H
#define KDA_STEP_ARGS_H

#include "kda_decode_args.h"

struct kda_step_args {
    struct kda_decode_args decode; /* q, k and v are not used: the filter makes them */
    const void *x, *weight, *bias, *norm_weight;
    void *conv_states;
    struct kda_rows z;
    int64_t x_sequence, weight_pitch, conv_slot, conv_row;
    int64_t share; /* CPU: sequences of a block */
    float eps;
};

#endif
