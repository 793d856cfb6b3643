/* What the blocks of a CPU GEMM step read: the contract between gemm.c (bind) and gemm_cpu.c.
 * Strides are in elements, the innermost one is 1. b_batch_stride may be 0: shared weights. */
#ifndef QN_GEMM_ARGS_H
#define QN_GEMM_ARGS_H
#include "common/cpu/types.h"

struct gemm_args {
    int64_t m, n, k, batch;
    int64_t a_row_stride, b_row_stride, d_row_stride;
    int64_t a_batch_stride, b_batch_stride, d_batch_stride;
    const void *a, *b, *bias;
    void *d;
    uint32_t *packed_b; /* PACK_B: panels, 64-byte aligned; see gemm_cpu.c for the layout */
    float *partial;     /* SPLIT_K > 1: [SPLIT_K][batch][m][n] */
};
#endif
