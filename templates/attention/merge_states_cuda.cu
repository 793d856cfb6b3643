/* Two states of attention made one: v = (w_a v_a + w_b v_b) / (w_a + w_b), and the logarithm of the
 * sum. A row, one head of one token, is LANES neighbouring lanes of a warp, each with PASSES
 * accesses of ACCESS bytes.
 *
 *     step    THREADS / LANES * UNROLL rows, a block's at a time; blocks walk over the rows in
 *             strides of the grid, so a grid of any size is right
 *     1.      all loads of UNROLL rows, so that bytes are in flight
 *     2.      the two weights: one of them is 1, that of the larger logarithm
 *     3.      the merged row
 *
 * Bound by memory: 3 D of v and 12 bytes of s a row.
 *
 * What an empty state holds is not looked at: it may be anything. An element of v_merged is written
 * by the thread that has read the same one of v_a and v_b, and s_merged after all lanes of the row
 * have read s_a and s_b, so each may lie on either input. */
#include "common/cuda/load.cuh"
#include "merge_states_args.h"

#ifndef H
#define H 32
#endif
#ifndef D
#define D 128
#endif
#ifndef DTYPE
#define DTYPE DT_BF16
#endif
#ifndef IS_V2
#define IS_V2 0
#endif
#ifndef ACCESS
#define ACCESS 16
#endif
#ifndef LANES
#define LANES 16
#endif
#ifndef THREADS
#define THREADS 256
#endif
#ifndef UNROLL
#define UNROLL 2
#endif

#define VEC (ACCESS / DT_SIZE(DTYPE)) /* elements of an access */
#define WORDS ((ACCESS + 3) / 4)
#define PASSES ((D + LANES * VEC - 1) / (LANES * VEC))
#define ROWS (THREADS / LANES) /* that a block has at once */
#define EMPTY __int_as_float(0xff800000)
static_assert(VEC >= 1 && D % VEC == 0 && 32 % LANES == 0 && THREADS % 32 == 0, "whole accesses");

/* Shares of the two in the merged value, and its logarithm. */
struct shares {
    float a, b, s;
};

static __device__ __forceinline__ shares shares_of(float s_a, float s_b)
{
    if (IS_V2) {
        s_a = isinf(s_a) ? EMPTY : s_a;
        s_b = isinf(s_b) ? EMPTY : s_b;
    }
    float most = fmaxf(s_a, s_b);
    if (s_a == EMPTY && s_b == EMPTY)
        return { 0, 0, EMPTY };
    float w_a = IS_V2 ? expf(s_a - most) : exp2f(s_a - most);
    float w_b = IS_V2 ? expf(s_b - most) : exp2f(s_b - most), sum = w_a + w_b;
    return { s_a == EMPTY ? 0 : w_a / sum, s_b == EMPTY ? 0 : w_b / sum,
             most + (IS_V2 ? logf(sum) : log2f(sum)) };
}

static __device__ __forceinline__ int64_t at(const merge_rows &rows, int64_t row)
{
    return row / H * rows.token + row % H * rows.head;
}

struct inputs {
    float s_a, s_b;
    uint32_t a[PASSES][WORDS], b[PASSES][WORDS];
};

static __device__ __forceinline__ void load(inputs &in, const merge_states_args &args, int64_t row,
                                            int lane)
{
    in.s_a = ((const float *)args.s_a.data)[at(args.s_a, row)];
    in.s_b = ((const float *)args.s_b.data)[at(args.s_b, row)];
    const void *a = element(DTYPE, args.v_a.data, at(args.v_a, row));
    const void *b = element(DTYPE, args.v_b.data, at(args.v_b, row));
#pragma unroll
    for (int p = 0; p < PASSES; p++) {
        int column = (p * LANES + lane) * VEC;
        if (column < D) {
            load_words(in.a[p], element(DTYPE, a, column), ACCESS);
            load_words(in.b[p], element(DTYPE, b, column), ACCESS);
        }
    }
}

static __device__ __forceinline__ void store(const inputs &in, const merge_states_args &args,
                                             int64_t row, int lane)
{
    const shares share = shares_of(in.s_a, in.s_b);
    const void *merged = element(DTYPE, args.v_merged.data, at(args.v_merged, row));
    if (lane == 0)
        ((float *)args.s_merged.data)[at(args.s_merged, row)] = share.s;
#pragma unroll
    for (int p = 0; p < PASSES; p++) {
        int column = (p * LANES + lane) * VEC;
        float value[VEC];
#pragma unroll
        for (int i = 0; i < VEC; i++)
            value[i] = (share.a == 0 ? 0 : share.a * word_as_f32(DTYPE, in.a[p], i)) +
                       (share.b == 0 ? 0 : share.b * word_as_f32(DTYPE, in.b[p], i));
        uint32_t words[WORDS];
        words_from_f32(DTYPE, words, value, VEC);
        if (column < D)
            store_words((void *)element(DTYPE, merged, column), words, ACCESS);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    merge_states_cuda(const __grid_constant__ struct merge_states_args args)
{
    const int lane = threadIdx.x % LANES;
    for (int64_t first = (int64_t)blockIdx.x * ROWS * UNROLL; first < args.rows;
         first += (int64_t)gridDim.x * ROWS * UNROLL) {
        inputs in[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            int64_t row = first + u * ROWS + threadIdx.x / LANES;
            if (row < args.rows)
                load(in[u], args, row, lane);
        }
        __syncwarp(); /* s of the rows is read by all lanes before one of them writes */
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            int64_t row = first + u * ROWS + threadIdx.x / LANES;
            if (row < args.rows)
                store(in[u], args, row, lane);
        }
    }
}
