/* What a block of grouped_gemm_sm90 reads: the contract between grouped_gemm_sm90_plan.c and
 * grouped_gemm_sm90.cu. Strides are in elements. */
#ifndef GROUPED_GEMM_SM90_ARGS_H
#define GROUPED_GEMM_SM90_ARGS_H
#include "common/types.h"

struct grouped_gemm_sm90_args {
    __attribute__((aligned(64))) uint8_t map_a[128]; /* not with GATHER */
    uint8_t map_b[128];
    const void *a; /* with GATHER */
    void *d;
    const int32_t *groups; /* offsets, expert_ids or counts, as FORM says */
    const int32_t *num_rows, *row_ids;
    int64_t a_row_stride, d_row_stride, d_expert_stride;
    int32_t experts, m, n, k;
    int32_t source_rows, share;
    int32_t step_a, step_b; /* 0: experts have the same rows of a (the same matrix), else 1 */
    uint32_t tiles_n;       /* of the columns of d */
    float limit;
};

/* Behind the stages: what each consuming warp's part of d passes through, the stages' barriers, and
 * what is known of the experts, but with form=blocks. */
#define GROUPED_GEMM_SM90_WARP_STAGING 2048
#define GROUPED_GEMM_SM90_SCAN_BYTES 64 /* of scanning them: a word a warp */
#define GROUPED_GEMM_SM90_EXPERT_BYTES 12
#endif
