/* What host and device sides of kda_decode share. Strides are in elements. */
#ifndef KDA_DECODE_ARGS_H
#define KDA_DECODE_ARGS_H

#include "common/types.h"

/* An array [n, steps, heads, width]. */
struct kda_rows {
    const void *data;
    int64_t sequence, token, head;
};

/* States [n or slots, tokens, hv, rows, width]; data NULL: there are none. */
struct kda_states {
    const void *data;
    int64_t sequence, token, head, row;
};

struct kda_decode_args {
    struct kda_rows q, k, v, g, beta, o; /* beta's width is 1, o is written */
    struct kda_states from, to;          /* to is written, and read with tree=1; may be from */
    const float *A_log, *dt_bias;
    const int32_t *slots, *parents;
    int64_t dt_bias_head, parents_sequence;
    int64_t n, capacity;
    float scale, lower_bound;
};

#endif
