/* What the blocks of a CPU GEMM step read: the contract between the two bind()s, of
 * gemm_cpu_plan.c and gemm_pack.c, and gemm_cpu.c. Strides are in elements, the innermost one is 1;
 * of the packed b in bytes. Those of the batch may be 0: shared weights. */
#ifndef QN_GEMM_ARGS_H
#define QN_GEMM_ARGS_H
#include "common/types.h"

struct gemm_args {
    int64_t m, n, k, batch;
    int64_t a_row_stride, b_row_stride, d_row_stride;
    int64_t a_batch_stride, b_batch_stride, d_batch_stride;
    const void *a, *b, *bias;
    void *d;
    void *packed_b; /* PACK_B: [entry][panel]; see gemm_cpu.c for what a panel is */
    int64_t packed_batch_bytes, packed_panel_bytes;
    float *partial; /* SPLIT_K > 1: [SPLIT_K][batch][m][n] */
};
#endif
