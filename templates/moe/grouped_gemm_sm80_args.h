/* What a block of grouped_gemm_sm80 reads: the contract between its plan and the device code.
 * Strides are in elements; the innermost one is 1. */
#ifndef GROUPED_GEMM_SM80_ARGS_H
#define GROUPED_GEMM_SM80_ARGS_H
#include "common/types.h"

struct grouped_gemm_sm80_args {
    int64_t a_row_stride, b_row_stride, d_row_stride;
    int64_t a_expert_stride, b_expert_stride, d_expert_stride; /* of a and d: FORM_MASKED */
    const void *a, *b;
    void *d;
    const int32_t *offsets, *expert_ids, *num_rows, *counts, *row_ids;
    int32_t experts, m, n, k, source_rows, share, block;
    int32_t n_tiles; /* tiles side by side in d */
    float limit;     /* of the activation; infinity: none */
};
#endif
