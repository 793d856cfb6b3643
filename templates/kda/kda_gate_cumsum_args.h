/* What host and device sides of kda_gate_cumsum share. */
#ifndef KDA_GATE_CUMSUM_ARGS_H
#define KDA_GATE_CUMSUM_ARGS_H

#include "common/types.h"

/* Strides in elements. A slot is where a chunk may be: the kernels' grids cover all slots.
 *
 *     varlen   sequence s has its chunks at slots cu_seqlens[s] / chunk + s and on: never more than
 *              there are up to the next one's, since a length rounded up to chunks is at most one
 *              chunk longer than the difference of the beginnings rounded down
 *     else     slots are the chunks, `chunks` for each sequence */
struct kda_gate_cumsum_args {
    const void *g;
    const float *A_log, *dt_bias;
    const void *cu_seqlens;
    float *out;
    int64_t t, n;
    int64_t length, chunks; /* of each sequence, where cu_seqlens is not given */
    int64_t g_strides[2], out_strides[2], bias_stride;
    int64_t block; /* CPU: heads that one block of the grid handles */
    float lower;
};

#endif
