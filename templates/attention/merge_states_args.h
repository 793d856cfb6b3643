/* What host and device sides of merge_state and merge_state_v2 share. Strides are in elements. */
#ifndef MERGE_STATES_ARGS_H
#define MERGE_STATES_ARGS_H

#include "common/types.h"

/* An array [t, h, d] or [t, h]. */
struct merge_rows {
    const void *data;
    int64_t token, head;
};

struct merge_states_args {
    struct merge_rows v_a, s_a, v_b, s_b, v_merged, s_merged; /* the last two are written */
    int64_t rows;                                             /* t h */
    int64_t block; /* CPU: rows that one block of the grid handles */
};

#endif
