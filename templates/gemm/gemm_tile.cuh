/* What gemm_sm80 and gemm_ffma do alike: which tile of d and which share of k is a block's, and how
 * finished sums get to d, or to partial and from there to d.
 *
 * Before including, define BM, BN, BK, SPLIT_K, GROUP, D_DTYPE, BIAS_DTYPE, ACCUMULATE and ALIGN_D.
 *
 * blockIdx.x counts the tiles of a product, then the products; blockIdx.y the shares of k. Tiles
 * are taken GROUP rows of tiles at a time, down each column of the group, so that blocks that run
 * at the same time need few distinct rows of a and columns of b, and find them in L2:
 *
 *     GROUP = 2      0  2  4        6 tiles of a group need 2 rows of a and 3 columns of b,
 *                    1  3  5        in a plain order 1 and 6
 *                    6  8 10
 *                    7  9 11
 *
 * Sums are f32. bias, then old d, are added in f32; the result is rounded once. With SPLIT_K > 1
 * shares go to partial and gemm_reduce adds them in their order. */
#ifndef GEMM_TILE_CUH
#define GEMM_TILE_CUH
#include "common/cuda/launch.cuh"
#include "common/cuda/load.cuh"
#include "gemm_cuda_args.h"

/* Elements of d that its alignment lets one instruction store. */
#define D_VECTOR (ALIGN_D > DT_SIZE(D_DTYPE) ? ALIGN_D / DT_SIZE(D_DTYPE) : 1)
/* Elements that go together from a block's sums to d, or to partial. */
#define OUT_VECTOR (SPLIT_K > 1 ? 4 : D_VECTOR)

struct tile {
    int m, n;           /* its first row and column */
    int k_begin, k_end; /* of the sums; k_begin is a multiple of BK */
    int64_t product;
};

__device__ __forceinline__ struct tile tile_of_block(const struct gemm_cuda_args *args)
{
    uint32_t tiles = args->m_tiles * args->n_tiles;
    uint32_t index = blockIdx.x % tiles, group_tiles = GROUP * args->n_tiles;
    uint32_t first_row = index / group_tiles * GROUP, in_group = index % group_tiles;
    uint32_t rows = min((uint32_t)args->m_tiles - first_row, (uint32_t)GROUP);
    int64_t share = ((int64_t)args->k + BK - 1) / BK;
    share = (share + SPLIT_K - 1) / SPLIT_K * BK;
    struct tile tile;
    tile.m = (first_row + in_group % rows) * BM;
    tile.n = in_group / rows * BN;
    tile.k_begin = (int)min(share * blockIdx.y, (int64_t)args->k);
    tile.k_end = (int)min(share * (blockIdx.y + 1), (int64_t)args->k);
    tile.product = blockIdx.x / tiles;
    return tile;
}

/* 0 where there is none. */
__device__ __forceinline__ float bias_of_column(const struct gemm_cuda_args *args, int column)
{
    if (BIAS_DTYPE == DT_NONE || column >= args->n)
        return 0.0f;
    return load_as_f32(BIAS_DTYPE, element(BIAS_DTYPE, args->bias, column));
}

/* `width` sums, of which the first `count` exist, to d. */
__device__ __forceinline__ void store_to_d(char *d, float *values, int width, int count)
{
    uint32_t words[4];
    if (count < width) {
#pragma unroll
        for (int i = 0; i < width; i++) {
            char *one = d + i * DT_SIZE(D_DTYPE);
            if (i < count)
                store_from_f32(D_DTYPE, one,
                               values[i] + (ACCUMULATE ? load_as_f32(D_DTYPE, one) : 0.0f));
        }
        return;
    }
    if (ACCUMULATE) {
        load_words(words, d, width * DT_SIZE(D_DTYPE));
#pragma unroll
        for (int i = 0; i < width; i++)
            values[i] += word_as_f32(D_DTYPE, words, i);
    }
    words_from_f32(D_DTYPE, words, values, width);
    store_words(d, words, width * DT_SIZE(D_DTYPE));
}

__device__ __forceinline__ char *d_at(const struct gemm_cuda_args *args, int64_t product, int row,
                                      int column)
{
    int64_t offset = product * args->d_batch_stride + row * args->d_row_stride + column;
    return (char *)args->d + offset * DT_SIZE(D_DTYPE);
}

__device__ __forceinline__ float *partial_at(const struct gemm_cuda_args *args, int share,
                                             int64_t product, int row, int column)
{
    int64_t rows = ((int64_t)share * args->batch + product) * args->m + row;
    return args->partial + rows * args->partial_pitch + column;
}

/* `width` sums of a block (OUT_VECTOR, or a divisor of it that is 4 for partial), bias added unless
 * they are a share's. */
__device__ __forceinline__ void put_sums(const struct gemm_cuda_args *args, const struct tile *tile,
                                         int row, int column, float *values, int width)
{
    if (row >= args->m || column >= args->n)
        return;
    if (SPLIT_K > 1) {
        float *to = partial_at(args, blockIdx.y, tile->product, row, column);
        *(float4 *)to = make_float4(values[0], values[1], values[2], values[3]);
    } else {
        store_to_d(d_at(args, tile->product, row, column), values, width, args->n - column);
    }
}

/* The step behind, gemm_reduce, may be brought to the SMs by now; it waits for this one itself. */
__device__ __forceinline__ void announce_reduce(void)
{
#if SPLIT_K > 1 && __CUDA_ARCH__ >= 900
    launch_dependents();
#endif
}

#if SPLIT_K > 1
#define REDUCE_THREADS 128
#define REDUCE_VECTOR (D_VECTOR < 4 ? D_VECTOR : 4)

/* A thread adds the shares of four columns of a row. blockIdx.x, threads: vectors of d. */
extern "C" __global__ void __launch_bounds__(REDUCE_THREADS)
    gemm_reduce(const __grid_constant__ struct gemm_cuda_args args)
{
    uint32_t vectors = args.partial_pitch / 4;
    uint32_t index = blockIdx.x * REDUCE_THREADS + threadIdx.x, row = index / vectors;
    int column = index % vectors * 4;
    int64_t product = row / args.m;
#if __CUDA_ARCH__ >= 900
    launch_wait();
#endif
    if (product >= args.batch)
        return;
    const float *from = partial_at(&args, 0, 0, 0, column) + (int64_t)row * args.partial_pitch;
    int64_t share_pitch = (int64_t)args.batch * args.m * args.partial_pitch;
    float values[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
#pragma unroll 8
    for (int share = 0; share < SPLIT_K; share++) {
        float4 v = *(const float4 *)(from + share * share_pitch);
        values[0] += v.x, values[1] += v.y, values[2] += v.z, values[3] += v.w;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        values[i] += bias_of_column(&args, column + i);
#pragma unroll
    for (int i = 0; i < 4; i += REDUCE_VECTOR) {
        if (column + i < args.n)
            store_to_d(d_at(&args, product, row % args.m, column + i), values + i, REDUCE_VECTOR,
                       args.n - column - i);
    }
}
#endif
#endif
