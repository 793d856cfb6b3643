/* What a block of gemm_sm80 and gemm_ffma reads: the contract between gemm_cuda.c and the device
 * code. Strides are in elements; the innermost one is 1. Those of inputs may be 0. */
#ifndef GEMM_CUDA_ARGS_H
#define GEMM_CUDA_ARGS_H
#include "common/types.h"

struct gemm_cuda_args {
    int64_t a_row_stride, b_row_stride, d_row_stride;
    int64_t a_batch_stride, b_batch_stride, d_batch_stride;
    const void *a, *b, *bias;
    void *d;
    float *partial; /* SPLIT_K > 1: [SPLIT_K][batch][m][partial_pitch] */
    int32_t m, n, k, batch;
    int32_t m_tiles, n_tiles;
    int32_t partial_pitch; /* n, up to a multiple of 4 */
};
#endif
