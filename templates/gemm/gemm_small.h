/* The inner part of gemm_cpu.c's ALGO_SMALL: MR rows of a times the block's columns of b, to
 * out[MR][NC]. b is read once, in order, and never stored; a and out stay in the cache.
 *
 *   [n,k]   NR columns at a time: MR x NR accumulators that run along k, added up at the end
 *   AMX     [n,k] of bf16, 16 rows of a: gemm_small_amx.h
 *   [k,n]   STEP_K rows of b at a time, along n: out += a[:, p..] b[p.., :], STEP_K terms for each
 *           load and store of out
 *
 * Included by gemm_cpu.c after its parameters and struct block. */
#ifndef QN_GEMM_SMALL_H
#define QN_GEMM_SMALL_H

_Static_assert(NC % VW == 0 && (!B_IS_NK || NC % NR == 0), "NC: whole vectors, whole steps");

/* Row r of the block's a, at k = p. Rows past the last repeat it: computed, never stored. */
INLINE const void *a_at(const struct gemm_args *args, const struct block *block, int64_t r,
                        int64_t p)
{
    int64_t row = block->row + MIN(r, block->rows - 1);
    return element(A_DTYPE, block->a, row * args->a_row_stride + p);
}

#if AMX

#include "gemm/gemm_small_amx.h"

#elif B_IS_NK

#define AHEAD (2048 / DT_SIZE(B_DTYPE)) /* elements: 1.5 to 4 KB do about as well, 0.5 KB less */

/* Prefetches what follows k = p of NR columns by AHEAD: of the same columns, or past their end the
 * beginning of the next NR, since straight on lies a column that is being read already. Without it
 * the hardware starts anew in every column (one row of bf16: 0.77 of the bandwidth, with it 0.95).
 * The next NR may lie past the array, so that no pointer is formed: a prefetch never faults. */
INLINE void prefetch_columns(const struct gemm_args *args, const struct block *block,
                             const void *const b[NR], int64_t p)
{
    int64_t at = p + AHEAD;
    if (at >= block->k_end)
        at += NR * args->b_row_stride - (block->k_end - block->k_begin);
    UNROLL
    for (int c = 0; c < NR; c++)
        __builtin_prefetch((const void *)((uintptr_t)b[c] + (uintptr_t)at * DT_SIZE(B_DTYPE)));
}

/* NR columns from j on: MR x NR dot products. Columns past the last repeat it, too. */
static void small_step(const struct gemm_args *args, const struct block *block, int64_t j,
                       float out[MR][NC])
{
    const void *a[MR], *b[NR];
    vec_f32 acc[MR][NR] = { 0 };
    UNROLL
    for (int r = 0; r < MR; r++)
        a[r] = a_at(args, block, r, 0);
    UNROLL
    for (int c = 0; c < NR; c++) {
        int64_t column = block->column + MIN(j + c, block->columns - 1);
        b[c] = element(B_DTYPE, block->b, column * args->b_row_stride);
    }
    int64_t p = block->k_begin;
    for (; p + VEC_K <= block->k_end; p += VEC_K) {
        vec_u32 columns[NR];
        prefetch_columns(args, block, b, p);
        UNROLL
        for (int c = 0; c < NR; c++)
            columns[c] = load_units(B_DTYPE, element(B_DTYPE, b[c], p));
        UNROLL
        for (int r = 0; r < MR; r++) {
            vec_u32 row = load_units(A_DTYPE, element(A_DTYPE, a[r], p));
            UNROLL
            for (int c = 0; c < NR; c++)
                acc[r][c] = multiply_add(acc[r][c], row, columns[c]);
        }
    }
    vec_f32 sums[MR][NR]; /* apart from acc, which stays in registers */
    UNROLL
    for (int r = 0; r < MR; r++) {
        UNROLL
        for (int c = 0; c < NR; c++)
            sums[r][c] = acc[r][c];
    }
    int64_t left = block->k_end - p;
    ROLLED
    for (int r = 0; r < MR; r++) {
        ROLLED
        for (int c = 0; c < NR; c++) {
            vec_u32 row = load_some_units(A_DTYPE, a_at(args, block, r, p), left);
            vec_u32 column = load_some_units(B_DTYPE, element(B_DTYPE, b[c], p), left);
            out[r][j + c] = sum_lanes(multiply_add(sums[r][c], row, column));
        }
    }
}

static void small_block(const struct gemm_args *args, const struct block *block, float out[MR][NC])
{
    for (int64_t j = 0; j < block->columns; j += NR)
        small_step(args, block, j, out);
}

#else

#define STEP_K 8 /* rows of b that are read side by side */

/* out += a[:, p .. p + k) b[p .. p + k, :], k constant: STEP_K, or 1 for what is left. */
INLINE void small_step(const struct gemm_args *args, const struct block *block, int64_t p, int k,
                       float out[MR][NC])
{
    float a[MR][STEP_K];
    for (int r = 0; r < MR; r++)
        for (int u = 0; u < k; u++)
            a[r][u] = load_one_as_f32(A_DTYPE, a_at(args, block, r, p + u));
    const void *b = element(B_DTYPE, block->b, p * args->b_row_stride + block->column);
    for (int64_t j = 0; j < block->columns; j += VW) {
        int64_t left = block->columns - j;
        vec_f32 rows[STEP_K];
        UNROLL
        for (int u = 0; u < k; u++) {
            const void *at = element(B_DTYPE, b, u * args->b_row_stride + j);
            rows[u] = left < VW ? load_part_as_f32(B_DTYPE, at, left) : load_as_f32(B_DTYPE, at);
        }
        UNROLL
        for (int r = 0; r < MR; r++) {
            vec_f32 acc = (vec_f32)load_u32(out[r] + j);
            UNROLL
            for (int u = 0; u < k; u++)
                acc += rows[u] * a[r][u];
            store_u32(out[r] + j, (vec_u32)acc);
        }
    }
}

static void small_block(const struct gemm_args *args, const struct block *block, float out[MR][NC])
{
    __builtin_memset(out, 0, sizeof(float[MR][NC]));
    int64_t p = block->k_begin;
    ROLLED
    for (; p + STEP_K <= block->k_end; p += STEP_K)
        small_step(args, block, p, STEP_K, out);
    ROLLED
    for (; p < block->k_end; p++)
        small_step(args, block, p, 1, out);
}

#endif
#endif
