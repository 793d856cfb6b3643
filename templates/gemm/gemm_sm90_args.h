/* What a block of gemm_sm90 reads: the contract between bind() in gemm_sm90_plan.c and
 * gemm_sm90.cu. P is the factor whose rows are the tile's rows, Q the one whose rows are its
 * columns: a and b, or (SWAP) b and a. Strides are in elements. */
#ifndef GEMM_SM90_ARGS_H
#define GEMM_SM90_ARGS_H
#include "common/types.h"

struct gemm_sm90_args {
    __attribute__((aligned(64))) uint8_t map_p[128];
    uint8_t map_q[128], map_d[128], map_tail[128];
    const void *bias;
    void *d;
    int64_t d_row_stride, d_batch_stride;
    int32_t m, n;
    int32_t steps;            /* of 64 along k, 0 where k is 0 */
    int32_t batch;            /* products */
    int32_t tiles_p, tiles_q; /* of one product; a multiple of the blocks that share a tile */
    int32_t step_p, step_q;   /* 0: all products have the same P (Q), else 1 */
};

/* A warpgroup's output is staged in pieces of 64 rows by GEMM_SM90_PIECE columns, 128 bytes wide,
 * in two buffers. What bn leaves over goes in narrower pieces through map_tail. A transposed tile
 * is staged whole: bn rows of 64 columns. */
#define GEMM_SM90_PIECE(bytes) (128 / (bytes))
#define GEMM_SM90_TAIL(bn, bytes)                                                                  \
    ((bn) % GEMM_SM90_PIECE(bytes) % (GEMM_SM90_PIECE(bytes) / 2) ? 16 : GEMM_SM90_PIECE(bytes) / 2)
#define GEMM_SM90_STAGING(swap, bn, bytes)                                                         \
    ((swap) ? ((bn)*64 * (bytes) + 1023) / 1024 * 1024 : 2 * 64 * 128)
#endif
