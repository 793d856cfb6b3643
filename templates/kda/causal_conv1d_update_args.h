/* What host and device sides of causal_conv1d_update share. */
#ifndef CAUSAL_CONV1D_UPDATE_ARGS_H
#define CAUSAL_CONV1D_UPDATE_ARGS_H

#include "common/types.h"

/* Pitches are in elements. */
struct causal_conv1d_update_args {
    const void *x, *weight, *bias;
    const int32_t *slots; /* NULL: state i is sequence i's */
    void *y, *states, *windows;
    int64_t weight_pitch;
    int64_t x_pitch[2], y_pitch[2]; /* of a sequence, of a step */
    int64_t state_pitch[2];         /* of a slot, of a row */
    int64_t window_pitch[3];        /* of a sequence, of a step, of a row */
    int64_t n, steps, d, capacity;
    int64_t share; /* sequences of a block (CPU) or thread (CUDA) */
    int64_t chunk; /* CPU: channels of a block */
};

#endif
