/* From the sums of a tile to d: act(gate) up, if so, and rounding. A lane has pairs of columns of
 * eight rows; four lanes trade words, so that each has up to 16 bytes of one row to store:
 *
 *     lane         0  1  2  3            0           1           2           3
 *     fragment 0   a  b  c  d            a b c d     .           .           .
 *              1   e  f  g  h     ->     .           e f g h     .           .
 *              2   i  j  k  l            .           .           i j k l     .
 *              3   m  n  o  p            .           .           .           m n o p
 *
 * Rows and columns that do not exist are not written. Included by grouped_gemm_sm80.cu after its
 * sizes. */
#ifndef GROUPED_GEMM_SM80_STORE_CUH
#define GROUPED_GEMM_SM80_STORE_CUH
#include "common/cuda/activation.cuh"
#include "common/cuda/load.cuh"
#include "grouped_gemm_sm80_args.h"
#include "grouped_gemm_tiles.cuh"

/* Words of 32 bits that a lane stores together, each of two columns. */
#define STORE_MOST (ALIGN_D >= 16 ? 4 : ALIGN_D >= 8 ? 2 : 1)
#define STORE_WORDS                                                                                \
    (D_DTYPE == DT_F32 ? 1 : OUT_FRAGMENTS < STORE_MOST ? OUT_FRAGMENTS : STORE_MOST)

static_assert(OUT_FRAGMENTS % STORE_WORDS == 0, "whole stores");

/* What a lane has of its row in some fragments, or of that 8 rows below: two columns of each. */
__device__ __forceinline__ void finish_row(const struct grouped_gemm_sm80_args *args,
                                           const float (&sums)[N_FRAGMENTS][4], int below,
                                           float (&values)[OUT_FRAGMENTS][2])
{
#pragma unroll
    for (int j = 0; j < OUT_FRAGMENTS; j++) {
#pragma unroll
        for (int c = 0; c < 2; c++) {
            values[j][c] = sums[j][2 * below + c];
            if (ACTIVATION)
                values[j][c] = gated_activation(
                    ACTIVATION, values[j][c], sums[j + N_FRAGMENTS - OUT_FRAGMENTS][2 * below + c],
                    args->limit);
        }
    }
}

/* Word i of lane j becomes word j of lane i, among STORE_WORDS neighbours. */
__device__ __forceinline__ void trade_words(uint32_t (&words)[STORE_WORDS])
{
#pragma unroll
    for (int bit = 1; bit < STORE_WORDS; bit *= 2) {
        bool is_high = threadIdx.x & bit;
#pragma unroll
        for (int i = 0; i < STORE_WORDS; i++) {
            if (i & bit)
                continue;
            uint32_t other = __shfl_xor_sync(0xffffffff, is_high ? words[i] : words[i | bit], bit);
            words[i] = is_high ? other : words[i];
            words[i | bit] = is_high ? words[i | bit] : other;
        }
    }
}

/* Columns from `column` on, of which those below n exist. */
__device__ __forceinline__ void store_words_of_row(const struct grouped_gemm_sm80_args *args,
                                                   char *row, int column, const uint32_t *words)
{
    char *to = row + (int64_t)column * 2;
    if (ALIGN_D >= 4 && column + 2 * STORE_WORDS <= args->n) {
        store_words(to, words, 4 * STORE_WORDS);
        return;
    }
#pragma unroll
    for (int i = 0; i < 2 * STORE_WORDS; i++) {
        if (column + i < args->n)
            *(uint16_t *)(to + 2 * i) = (uint16_t)(words[i / 2] >> i % 2 * 16);
    }
}

__device__ __forceinline__ void store_f32_pair(const struct grouped_gemm_sm80_args *args, char *row,
                                               int column, const float (&values)[2])
{
    float *to = (float *)row + column;
    if (ALIGN_D >= 8 && column + 2 <= args->n) {
        *(float2 *)to = make_float2(values[0], values[1]);
        return;
    }
    if (column < args->n)
        to[0] = values[0];
    if (column + 1 < args->n)
        to[1] = values[1];
}

/* A row of the warp's part of the tile; row NULL: it does not exist. */
__device__ __forceinline__ void store_row(const struct grouped_gemm_sm80_args *args, char *row,
                                          int first_column, const float (&values)[OUT_FRAGMENTS][2])
{
    int lane = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < OUT_FRAGMENTS; j += STORE_WORDS) {
        if (D_DTYPE == DT_F32) {
            if (row)
                store_f32_pair(args, row, first_column + 8 * j + 2 * lane, values[j]);
            continue;
        }
        uint32_t words[STORE_WORDS];
#pragma unroll
        for (int i = 0; i < STORE_WORDS; i++)
            words_from_f32(D_DTYPE, &words[i], values[j + i], 2);
        trade_words(words);
        int fragment = j + lane % STORE_WORDS;
        int column = 8 * fragment + lane / STORE_WORDS * STORE_WORDS * 2;
        if (row)
            store_words_of_row(args, row, first_column + column, words);
    }
}

/* 5. Sums of zero, where the tile has no expert, give zeros. */
__device__ __forceinline__ void store_tile(const struct grouped_gemm_sm80_args *args,
                                           const struct tile *tile,
                                           const float (&sums)[M_FRAGMENTS][N_FRAGMENTS][4])
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int first_column = tile->column_tile * OUT_N + warp % WARPS_N * (WN / HALVES);
    int64_t pitch = args->d_row_stride * DT_SIZE(D_DTYPE);
    char *d = (char *)args->d + tile->row * pitch;
    if (FORM == FORM_MASKED)
        d += tile->expert * args->d_expert_stride * DT_SIZE(D_DTYPE);
#pragma unroll
    for (int i = 0; i < 2 * M_FRAGMENTS; i++) {
        int row = warp / WARPS_N * WM + i * 8 + lane / 4;
        float values[OUT_FRAGMENTS][2];
        finish_row(args, sums[i / 2], i % 2, values);
        store_row(args, row < tile->rows ? d + row * pitch : nullptr, first_column, values);
    }
}
#endif
