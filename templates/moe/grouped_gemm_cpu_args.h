/* What the blocks of grouped_gemm_cpu.c read: the contract between its plan and the device code.
 * Strides are in elements, the innermost one is 1. */
#ifndef GROUPED_GEMM_CPU_ARGS_H
#define GROUPED_GEMM_CPU_ARGS_H
#include "common/types.h"

struct grouped_gemm_cpu_args {
    int64_t experts, m, n, k, source_rows, share, block;
    int64_t a_row_stride, b_row_stride, d_row_stride;
    int64_t a_expert_stride, b_expert_stride, d_expert_stride;
    const void *a, *b;
    void *d;
    const int32_t *offsets, *expert_ids, *num_rows, *counts, *row_ids;
    float limit; /* infinity: none */
};
#endif
