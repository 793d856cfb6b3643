/* The epilogue of grouped_gemm_sm90: a consumer's sums become its part of d.
 *
 *     act(gate) up    in f32, in registers: a thread has both sums of an element of d
 *     staging memory  16-bit d rounded, by stmatrix; f32 d as it is; swizzled
 *     rows of d       from there, 16 bytes a thread and 128 bytes of a row at a time
 *
 * Nothing is stored beyond the tile's last row or d's last column. A warp has rows of its own and
 * waits for nobody; with SWAP it has columns, and the consumer's four put their rows together.
 *
 * Expects what grouped_gemm_sm90.cu defines before it includes this. */
#ifndef GROUPED_GEMM_SM90_EPILOGUE_CUH
#define GROUPED_GEMM_SM90_EPILOGUE_CUH
#include "common/cuda/activation.cuh"
#include "common/cuda/load.cuh"
#include "common/cuda/named_barrier.cuh"
#include "common/cuda/stmatrix.cuh"
#include "common/cuda/swizzle.cuh"
#include "moe/grouped_gemm_sm90_tiles.cuh"

/* What a consumer has of d: OUT_PARTS times 64 rows of P by OUT_COLUMNS rows of Q. */
#define OUT_PARTS (ACTIVATION && SWAP ? PARTS / 2 : PARTS)
#define OUT_COLUMNS (ACTIVATION && !SWAP ? BN / 2 : BN)
#define OF_16_BYTES (16 / D_BYTES)
#define OF_128_BYTES (128 / D_BYTES)

/* A consumer's staging memory: 64 rows of 128 bytes, 16 of them a warp's. */
struct staging {
    uint32_t address;
    int consumer;
};

/* Sums of a thread: those of d, or of the gate and of up. */
struct sums {
    const float *d, *up;
};

__device__ __forceinline__ struct sums sums_from(const struct sums *sums, int first)
{
    return { sums->d + first, sums->up + first };
}

__device__ __forceinline__ float sum_of(const struct grouped_gemm_sm90_args *args,
                                        const struct sums *sums, int i)
{
    return ACTIVATION ? gated_activation(ACTIVATION, sums->d[i], sums->up[i], args->limit)
                      : sums->d[i];
}

/* The part of d that the tile belongs to. */
__device__ __forceinline__ char *matrix_of(const struct grouped_gemm_sm90_args *args,
                                           const struct tile *tile)
{
    int64_t index = FORM == FORM_MASKED ? tile->expert * args->d_expert_stride : 0;
    return (char *)args->d + index * D_BYTES;
}

/* `count` elements of a row, or those of them that d has. */
__device__ __forceinline__ void store_run(const struct grouped_gemm_sm90_args *args, char *row,
                                          int32_t column, const uint32_t *words, int count)
{
    char *at = row + (int64_t)column * D_BYTES;
#if D_WHOLE
    store_words(at, words, count * D_BYTES);
#else
    if (D_ALIGNED && column + count <= args->n) {
        store_words(at, words, count * D_BYTES);
        return;
    }
#pragma unroll
    for (int i = 0; i < count; i++) {
        if (column + i < args->n && D_BYTES == 4)
            store_words(at + 4 * i, &words[i], 4);
        if (column + i < args->n && D_BYTES == 2)
            *(uint16_t *)(at + 2 * i) = (uint16_t)(words[i / 2] >> i % 2 * 16);
    }
#endif
}

/* 16 bytes of the warp's staging memory to d. */
__device__ __forceinline__ void store_staged(const struct grouped_gemm_sm90_args *args,
                                             char *matrix, uint32_t from, int32_t row, int32_t end,
                                             int32_t column)
{
    uint32_t words[4];
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(from)
                 : "memory");
    if (row < end && column < args->n)
        store_run(args, matrix + row * args->d_row_stride * D_BYTES, column, words, OF_16_BYTES);
}

/* Eight of them, from `first` on, rounded. */
__device__ __forceinline__ void pack_8(const struct grouped_gemm_sm90_args *args,
                                       const struct sums *sums, int first, uint32_t (&pairs)[4])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float low = sum_of(args, sums, first + 2 * i), high = sum_of(args, sums, first + 2 * i + 1);
        pairs[i] = D_DTYPE == DT_BF16 ? bf16x2_from_f32(low, high) : f16x2_from_f32(low, high);
    }
}

/* 16 rows by 16 columns of the warp to staging rows of 128 bytes, from `column` on. Its sums begin
 * with `first`. */
__device__ __forceinline__ void stage_rows(const struct grouped_gemm_sm90_args *args,
                                           const struct sums *sums, int first, uint32_t staging,
                                           int column)
{
    const int lane = threadIdx.x % 32;
    if constexpr (D_BYTES == 2) {
        uint32_t pairs[4], offset = lane % 16 * 128 + (lane / 16 * 8 + column) * 2;
        pack_8(args, sums, first, pairs);
        stmatrix_x4(staging + swizzled<128>(offset), pairs);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
            int row = lane / 4 + (i & 2) * 4, at = column + i / 4 * 8 + lane % 4 * 2;
            asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(
                             staging + swizzled<128>(row * 128 + at * 4)),
                         "f"(sum_of(args, sums, first + i)), "f"(sum_of(args, sums, first + i + 1))
                         : "memory");
        }
    }
}

/* 16 rows by up to 128 bytes of the warp. */
template <int width>
__device__ __forceinline__ void store_piece(const struct grouped_gemm_sm90_args *args, char *matrix,
                                            uint32_t staging, int32_t row, int32_t end,
                                            int32_t column, const struct sums *sums)
{
    const int lane = threadIdx.x % 32, chunks = width / OF_16_BYTES;
    __syncwarp();
#pragma unroll
    for (int j = 0; j < width; j += 16)
        stage_rows(args, sums, j / 2, staging, j);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < chunks / 2; i++) {
        int chunk = i * 32 + lane, at = chunk / chunks, of_row = chunk % chunks;
        store_staged(args, matrix, staging + swizzled<128>(at * 128 + of_row * 16), row + at, end,
                     column + of_row * OF_16_BYTES);
    }
}

/* 64 rows of P, of which the warp has the 16 from `row` on. */
__device__ __forceinline__ void store_rows(const struct grouped_gemm_sm90_args *args,
                                           const struct tile *tile, uint32_t staging, int32_t row,
                                           const struct sums *sums)
{
    const int wide = OUT_COLUMNS / OF_128_BYTES * OF_128_BYTES, left = OUT_COLUMNS - wide;
    char *matrix = matrix_of(args, tile);
    if (row >= tile->end)
        return;
#pragma unroll
    for (int column = 0; column < wide; column += OF_128_BYTES) {
        struct sums piece = sums_from(sums, column / 2);
        store_piece<OF_128_BYTES>(args, matrix, staging, row, tile->end, tile->column + column,
                                  &piece);
    }
    if constexpr (left > 0) {
        struct sums piece = sums_from(sums, wide / 2);
        store_piece<left>(args, matrix, staging, row, tile->end, tile->column + wide, &piece);
    }
}

/* ---- Transposed ---------------------------------------------------------------------------- */

/* The staging memory is then BOXES boxes of BOX_ROWS rows of 128 bytes, 64 columns of d together.
 * The warp has 16 of them: for 16 rows from `row` on, its sums begin with `first`. */
#define BOXES (64 / OF_128_BYTES)
#define BOX_ROWS (64 / BOXES)

__device__ __forceinline__ void stage_columns(const struct grouped_gemm_sm90_args *args,
                                              const struct sums *sums, int first, uint32_t staging,
                                              int row)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
    if constexpr (D_BYTES == 2) {
        uint32_t pairs[4], at = row + lane / 16 * 8 + lane % 8;
        pack_8(args, sums, first, pairs);
        stmatrix_x4_transposed(staging + swizzled<128>(at * 128 + warp * 32 + lane / 8 % 2 * 16),
                               pairs);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int at = row + i / 4 * 8 + lane % 4 * 2 + i % 2;
            int column = warp % 2 * 16 + lane / 4 + (i & 2) * 4;
            uint32_t box = staging + warp / 2 * (BOX_ROWS * 128);
            asm volatile(
                "st.shared.f32 [%0], %1;" ::"r"(box + swizzled<128>(at * 128 + column * 4)),
                "f"(sum_of(args, sums, first + i))
                : "memory");
        }
    }
}

/* `width` rows of 64 columns, by the consumer. */
template <int width>
__device__ __forceinline__ void store_columns(const struct grouped_gemm_sm90_args *args,
                                              char *matrix, const struct staging *staging,
                                              int32_t row, int32_t end, int32_t column,
                                              const struct sums *sums)
{
    const int thread = threadIdx.x % 128, of_row = thread % 8;
    named_barrier_sync(BARRIER_STAGING + staging->consumer, 128);
#pragma unroll
    for (int j = 0; j < width; j += 16)
        stage_columns(args, sums, j / 2, staging->address, j);
    named_barrier_sync(BARRIER_STAGING + staging->consumer, 128);
#pragma unroll
    for (int i = 0; i < BOXES * width; i += 16) {
        int box = i / width, at = i % width + thread / 8;
        uint32_t from = staging->address + box * (BOX_ROWS * 128);
        store_staged(args, matrix, from + swizzled<128>(at * 128 + of_row * 16), row + at, end,
                     column + box * OF_128_BYTES + of_row * OF_16_BYTES);
    }
}

/* BN rows of d, 64 columns from `column` on. */
__device__ __forceinline__ void store_transposed(const struct grouped_gemm_sm90_args *args,
                                                 const struct tile *tile,
                                                 const struct staging *staging, int32_t column,
                                                 const struct sums *sums)
{
    const int wide = BN / BOX_ROWS * BOX_ROWS, left = BN % BOX_ROWS;
    char *matrix = matrix_of(args, tile);
#pragma unroll
    for (int row = 0; row < wide; row += BOX_ROWS) {
        struct sums piece = sums_from(sums, row / 2);
        if (tile->row + row < tile->end)
            store_columns<BOX_ROWS>(args, matrix, staging, tile->row + row, tile->end, column,
                                    &piece);
    }
    if constexpr (left > 0) {
        struct sums piece = sums_from(sums, wide / 2);
        if (tile->row + wide < tile->end)
            store_columns<left>(args, matrix, staging, tile->row + wide, tile->end, column, &piece);
    }
}

/* `unit`: which of the tile's consumers this is. */
__device__ __forceinline__ void finish(const struct grouped_gemm_sm90_args *args,
                                       const struct tile *tile, int unit,
                                       const struct staging *staging,
                                       const float (&d)[PARTS][BN / 2])
{
    const int32_t warp = threadIdx.x % 128 / 32;
#pragma unroll
    for (int part = 0; part < OUT_PARTS; part++) {
        const struct sums sums = { d[part],
                                   SWAP ? d[(part + PARTS / 2) % PARTS] : d[part] + BN / 4 };
        int32_t first = (unit * OUT_PARTS + part) * 64;
        if (SWAP)
            store_transposed(args, tile, staging, tile->column + first, &sums);
        else
            store_rows(args, tile, staging->address + warp * GROUPED_GEMM_SM90_WARP_STAGING,
                       tile->row + first + warp * 16, &sums);
    }
    __syncwarp();
}
#endif
