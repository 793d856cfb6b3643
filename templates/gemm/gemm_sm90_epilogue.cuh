/* The epilogue of gemm_sm90: a consumer's sums become its part of d.
 *
 *     sums + bias + old d     in f32, in registers, where the tile lies within d
 *     D_TMA                   rounded, to staging memory (stmatrix, swizzled), stored by TMA: by
 *                             rows in pieces of 128 bytes, one stored while the next is written; a
 *                             transposed tile (SWAP) whole
 *     else                    rounded and stored element by element
 *
 * Expects what gemm_sm90.cu defines before it includes this. */
#ifndef GEMM_SM90_EPILOGUE_CUH
#define GEMM_SM90_EPILOGUE_CUH
#include "common/cuda/load.cuh"
#include "common/cuda/named_barrier.cuh"
#include "common/cuda/stmatrix.cuh"
#include "common/cuda/swizzle.cuh"
#include "common/cuda/tma.cuh"
#include "gemm/gemm_sm90_args.h"

/* A consumer's staging memory. Its two buffers are taken in turns, through all parts and tiles. */
struct staging {
    uint32_t address;
    int consumer;
    uint32_t pieces; /* stored so far */
};

/* Where this thread's d[part][i] lies: its row of P and row of Q. */
__device__ __forceinline__ int32_t row_of(const struct tile *tile, int32_t row, int part, int i)
{
    return tile->p + row + 64 * part + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4 +
           (i & 2) * 4;
}

__device__ __forceinline__ int32_t column_of(const struct tile *tile, int i)
{
    return tile->q + i / 4 * 8 + threadIdx.x % 4 * 2 + (i & 1);
}

__device__ __forceinline__ void *d_at(const struct gemm_sm90_args *args, int32_t batch, int32_t m,
                                      int32_t n)
{
    int64_t index = batch * args->d_batch_stride + m * args->d_row_stride + n;
    return (char *)args->d + index * D_BYTES;
}

/* Old d's elements at (m, n) and, of the same row, n + 1: one load where rows are aligned. */
__device__ __forceinline__ void add_old_pair(const struct gemm_sm90_args *args, int32_t batch,
                                             int32_t m, int32_t n, float *d)
{
    uint32_t words[2];
    const void *at = d_at(args, batch, m, n);
    if (D_TMA && n + 1 < args->n) {
        load_words(words, at, 2 * D_BYTES);
        d[0] += word_as_f32(D_DTYPE, words, 0);
        d[1] += word_as_f32(D_DTYPE, words, 1);
        return;
    }
    d[0] += load_as_f32(D_DTYPE, at);
    if (n + 1 < args->n)
        d[1] += load_as_f32(D_DTYPE, d_at(args, batch, m, n + 1));
}

/* d[part] += bias + old d, where the tile lies within d; eight columns at a time, since all loads
 * at once would take more registers than there are. */
__device__ __forceinline__ void add_extras(const struct gemm_sm90_args *args,
                                           const struct tile *tile, int32_t row, int part,
                                           float (&d)[BN / 2])
{
#pragma unroll
    for (int i = 0; i < BN / 2; i++) {
        int32_t p = row_of(tile, row, part, i), q = column_of(tile, i);
        int32_t m = SWAP ? q : p, n = SWAP ? p : q;
        if (m < args->m && n < args->n) {
            if (BIAS_DTYPE != DT_NONE)
                d[i] += load_as_f32(BIAS_DTYPE, element(BIAS_DTYPE, args->bias, n));
            if (ACCUMULATE && SWAP)
                d[i] += load_as_f32(D_DTYPE, d_at(args, tile->batch, m, n));
            if (ACCUMULATE && !SWAP && i % 2 == 0)
                add_old_pair(args, tile->batch, m, n, &d[i]);
        }
        if (i % 4 == 3)
            asm volatile("" ::: "memory");
    }
}

__device__ __forceinline__ void store_elements(const struct gemm_sm90_args *args,
                                               const struct tile *tile, int32_t row, int part,
                                               const float (&d)[BN / 2])
{
#pragma unroll
    for (int i = 0; i < BN / 2; i++) {
        int32_t p = row_of(tile, row, part, i), q = column_of(tile, i);
        int32_t m = SWAP ? q : p, n = SWAP ? p : q;
        if (m < args->m && n < args->n)
            store_from_f32(D_DTYPE, d_at(args, tile->batch, m, n), d[i]);
    }
}

__device__ __forceinline__ uint32_t d_pair(float low, float high)
{
    return D_DTYPE == DT_BF16 ? bf16x2_from_f32(low, high) : f16x2_from_f32(low, high);
}

/* 16 columns of d to staging rows of `pitch` bytes, the first at `column`; transposed with SWAP. */
template <int pitch>
__device__ __forceinline__ void stage_16(uint32_t staging, int column, const float *d)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
    if constexpr (D_BYTES == 2) {
        const uint32_t pairs[4] = { d_pair(d[0], d[1]), d_pair(d[2], d[3]), d_pair(d[4], d[5]),
                                    d_pair(d[6], d[7]) };
        int eight = lane / 8 % 2 * 8, sixteen = lane / 16 * 8 + column;
        if (SWAP)
            stmatrix_x4_transposed(
                staging + swizzled<pitch>((sixteen + lane % 8) * pitch + (warp * 16 + eight) * 2),
                pairs);
        else
            stmatrix_x4(staging +
                            swizzled<pitch>((warp * 16 + eight + lane % 8) * pitch + sixteen * 2),
                        pairs);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int row = warp * 16 + lane / 4 + (i & 2) * 4;
            int at = column + i / 4 * 8 + lane % 4 * 2 + i % 2;
            uint32_t box = SWAP ? row / 32 * BN * 128 : 0;
            uint32_t offset = SWAP ? at * pitch + row % 32 * 4 : row * pitch + at * 4;
            asm volatile("st.shared.f32 [%0], %1;" ::"r"(staging + box + swizzled<pitch>(offset)),
                         "f"(d[i])
                         : "memory");
        }
    }
}

/* `width` columns of a consumer's part, from `column` on, to d through one of its two buffers: one
 * is stored by TMA while the other is written. */
template <int width>
__device__ __forceinline__ void store_piece(const void *map, const struct tile *tile, int32_t row,
                                            struct staging *staging, int column, const float *d)
{
    uint32_t buffer = staging->address + staging->pieces++ % 2 * (64 * 128);
    if (threadIdx.x % 128 == 0)
        tma_store_wait_read<1>();
    named_barrier_sync(BARRIER_STAGING + staging->consumer, 128);
#pragma unroll
    for (int j = 0; j < width; j += 16)
        stage_16<width * D_BYTES>(buffer, j, &d[j / 2]);
    tma_store_fence();
    named_barrier_sync(BARRIER_STAGING + staging->consumer, 128);
    if (threadIdx.x % 128 == 0) {
        tma_store_3d(map, buffer, tile->q + column, tile->p + row, tile->batch);
        tma_store_commit();
    }
}

__device__ __forceinline__ void store_rows(const struct gemm_sm90_args *args,
                                           const struct tile *tile, int32_t row,
                                           struct staging *staging, const float (&d)[BN / 2])
{
    const int wide = BN / PIECE * PIECE;
#pragma unroll
    for (int column = 0; column < wide; column += PIECE)
        store_piece<PIECE>(args->map_d, tile, row, staging, column, &d[column / 2]);
#pragma unroll
    for (int column = wide; column < BN; column += TAIL)
        store_piece<TAIL>(args->map_tail, tile, row, staging, column, &d[column / 2]);
}

/* The same for a transposed tile: BN rows of 64 columns of d. */
__device__ __forceinline__ void store_transposed(const struct gemm_sm90_args *args,
                                                 const struct tile *tile, int32_t row,
                                                 struct staging *staging, const float (&d)[BN / 2])
{
    if (threadIdx.x % 128 == 0)
        tma_store_wait_read<0>();
    named_barrier_sync(BARRIER_STAGING + staging->consumer, 128);
#pragma unroll
    for (int j = 0; j < BN; j += 16)
        stage_16<128>(staging->address, j, &d[j / 2]);
    tma_store_fence();
    named_barrier_sync(BARRIER_STAGING + staging->consumer, 128);
    if (threadIdx.x % 128 == 0) {
        for (int box = 0; box < 64 * D_BYTES / 128; box++)
            tma_store_3d(args->map_d, staging->address + box * BN * 128, tile->p + row + box * 32,
                         tile->q, tile->batch);
        tma_store_commit();
    }
}

__device__ __forceinline__ void finish(const struct gemm_sm90_args *args, const struct tile *tile,
                                       int32_t row, struct staging *staging,
                                       float (&d)[PARTS][BN / 2])
{
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        if (BIAS_DTYPE != DT_NONE || ACCUMULATE)
            add_extras(args, tile, row, part, d[part]);
        if (!D_TMA)
            store_elements(args, tile, row, part, d[part]);
        else if (SWAP)
            store_transposed(args, tile, row + 64 * part, staging, d[part]);
        else
            store_rows(args, tile, row + 64 * part, staging, d[part]);
    }
}
#endif
