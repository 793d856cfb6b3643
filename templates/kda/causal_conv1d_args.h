/* What host and device sides of causal_conv1d share. */
#ifndef CAUSAL_CONV1D_ARGS_H
#define CAUSAL_CONV1D_ARGS_H

#include "common/types.h"

/* Pitches are in elements. A pool is both old and new. */
struct causal_conv1d_args {
    const void *x, *weight, *bias, *cu_seqlens;
    const int32_t *slots;
    const uint8_t *has_initial;
    const void *old_state;
    void *y, *new_state;
    int64_t x_pitch, y_pitch, weight_pitch;
    int64_t old_pitch[2], new_pitch[2]; /* of a sequence or slot, of a row */
    int64_t t, n, d, capacity;
    int64_t tile;  /* tokens of a tile */
    int64_t tiles; /* of tokens; states that go to final_state come after them */
    int64_t chunk; /* CPU: channels of a block */
};

#endif
