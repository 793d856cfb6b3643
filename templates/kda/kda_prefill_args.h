/* What host and device sides of kda_prefill share. */
#ifndef KDA_PREFILL_ARGS_H
#define KDA_PREFILL_ARGS_H

#include "common/types.h"

/* Strides are in elements: of a token, a head, a sequence or slot, a row of a head's state. */
struct kda_prefill_args {
    const void *q, *k, *v, *g, *beta;
    const float *A_log, *dt_bias;
    const void *cu_seqlens;
    const int32_t *slots;
    const void *before; /* initial_state or states; may be NULL */
    void *after;        /* final_state or states; may be NULL */
    void *o;
    void *chunk_states; /* may be NULL */
    int64_t t, n, h, hv, capacity;
    int64_t q_t, q_h, k_t, k_h, v_t, v_h, g_t, g_h, beta_t, beta_h, o_t, o_h;
    int64_t bias_h;
    int64_t before_n, before_h, before_row, after_n, after_h, after_row;
    int64_t chunk_n, chunk_h, chunk_row;
    float scale, lower_bound;
};

#endif
