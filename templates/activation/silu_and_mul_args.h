/* What host and device sides of silu_and_mul share. */
#ifndef SILU_AND_MUL_ARGS_H
#define SILU_AND_MUL_ARGS_H

#include "common/types.h"

/* The largest code of a quantized out, and the least factor: that of a row of zeros. */
#define SILU_MUL_E4M3_MOST 448.0f
#define SILU_MUL_I8_MOST 127.0f
#define SILU_MUL_LEAST 0x1p-126f
#define SILU_MUL_GROUP 128
#define SILU_MUL_ITEM 8 /* CUDA: columns that a thread has at a time */

struct silu_and_mul_args {
    const void *x;
    void *out;
    float *scales;
    int64_t x_row, out_row, scales_row; /* elements from a row to the next */
    int64_t tokens, width;
    int64_t rows, columns; /* CPU: of out that a block handles */
    int64_t step_rows;     /* CUDA: from an item of a thread to its next one, in rows */
    uint32_t step_items;   /* and items beyond them */
    uint32_t items;        /* of a row */
    float limit, alpha;
};

#endif
