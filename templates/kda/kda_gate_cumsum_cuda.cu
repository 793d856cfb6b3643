/* out = the running sums of gate(g) / ln 2 inside chunks. A block has one slot, which holds a chunk
 * or is empty, and COLUMNS pieces of a row: a piece is VEC columns of one head.
 *
 *              piece 0    piece 1   ...  (a warp's lanes, side by side in memory)
 *     tokens   thread     thread         segment 0: SEGMENT tokens
 *     tokens   thread     thread         segment 1
 *       ...                              CHUNK / SEGMENT of them
 *
 *     1. find the slot's chunk; each warp for itself, 32 sequences a step
 *     2. a thread loads its SEGMENT pieces, all of them ahead of the first use, and turns them into
 *        running sums in registers
 *     3. the sums of segments meet in shared memory; each thread adds those above its own
 *     4. store
 *
 * Bound by memory, 4 bytes out and an element of g in: 8192 tokens of 32 heads of 128 take 47 us
 * with g of bf16, at 4.3 TB/s. A gate takes some 20 instructions for each element, which is half of
 * that.
 *
 * What cu_seqlens holds is clamped to [0, t]; tokens of no sequence are not written. Every element
 * of out is written by one thread as long as sequences do not overlap. */
#include "common/cuda/load.cuh"
#include "kda_gate.cuh"
#include "kda_gate_cumsum_args.h"

#ifndef G_DTYPE
#define G_DTYPE DT_F32
#endif
#ifndef GATE
#define GATE KDA_GATE_SOFTPLUS
#endif
#ifndef HAS_BIAS
#define HAS_BIAS 0
#endif
#ifndef VARLEN
#define VARLEN 0
#endif
#ifndef INDEX_64
#define INDEX_64 0
#endif
#ifndef HEADS
#define HEADS 32
#endif
#ifndef K /* 1 with decay=scalar */
#define K 128
#endif
#ifndef CHUNK
#define CHUNK 64
#endif
#ifndef VEC /* columns of a piece: divides K */
#define VEC 4
#endif
#ifndef OUT_ACCESS /* bytes of a store; a load is a piece */
#define OUT_ACCESS 16
#endif
#ifndef COLUMNS
#define COLUMNS 32
#endif
#ifndef SEGMENT
#define SEGMENT 8
#endif

#define SEGMENTS (CHUNK / SEGMENT)
#define PIECES (HEADS * (K / VEC)) /* of a token's row */
#define G_WORDS ((VEC * DT_SIZE(G_DTYPE) + 3) / 4)
#define LOG2_E 1.44269504f
static_assert(K % VEC == 0 && CHUNK % SEGMENT == 0, "whole pieces and segments");
static_assert(COLUMNS % 32 == 0, "a warp has one segment's pieces");

struct span {
    int64_t first, end;
};

static __device__ __forceinline__ int64_t begin_of(const struct kda_gate_cumsum_args &args,
                                                   int64_t sequence)
{
    int64_t value = INDEX_64 ? ((const int64_t *)args.cu_seqlens)[sequence]
                             : ((const int32_t *)args.cu_seqlens)[sequence];
    return max((int64_t)0, min(value, args.t));
}

/* 1. The last sequence whose first slot is at or before this one has it, if any. By whole warps. */
static __device__ __forceinline__ struct span span_of(const struct kda_gate_cumsum_args &args,
                                                      int64_t slot)
{
    int64_t low = 0, high = args.n, begin, first;
    struct span span;
    if (!VARLEN) {
        low = (uint32_t)slot / (uint32_t)args.chunks;
        begin = low * args.length, span.end = begin + args.length;
        first = begin + (slot - low * args.chunks) * CHUNK;
    } else {
        while (high - low > 1) {
            int64_t step = (high - low + 31) / 32, probe = low + threadIdx.x % 32 * step;
            bool is_before = probe < high && begin_of(args, probe) / CHUNK + probe <= slot;
            uint32_t before = __ballot_sync(0xffffffff, is_before) | 1;
            low += (31 - __clz((int)before)) * step;
            high = min(low + step, high);
        }
        begin = begin_of(args, low), span.end = begin_of(args, low + 1);
        first = begin + (slot - begin / CHUNK - low) * CHUNK;
    }
    span.first = first < begin || first > span.end ? span.end : first;
    span.end = min(span.end, span.first + CHUNK);
    return span;
}

/* One head's gate. */
struct gate {
    float rate, lower;
};

static __device__ __forceinline__ struct gate gate_of(const struct kda_gate_cumsum_args &args,
                                                      int head)
{
    struct gate gate = { 1.0f, args.lower * LOG2_E };
    if (GATE != KDA_GATE_NONE)
        gate.rate = expf(args.A_log[head]);
    if (GATE == KDA_GATE_SOFTPLUS)
        gate.rate *= LOG2_E;
    return gate;
}

static __device__ __forceinline__ float decay_of(float x, float bias, const struct gate &gate)
{
    return GATE == KDA_GATE_NONE ? x * LOG2_E : kda_gate<GATE>(x, bias, gate.rate, gate.lower);
}

/* 2. A thread's pieces: `count` tokens from the one that g is at, zeros beyond. */
static __device__ __forceinline__ void load_pieces(uint32_t (&words)[SEGMENT][G_WORDS],
                                                   const void *g, int64_t stride, int count)
{
#pragma unroll
    for (int i = 0; i < SEGMENT; i++) {
#pragma unroll
        for (int w = 0; w < G_WORDS; w++)
            words[i][w] = 0;
        if (i < count)
            load_words(words[i], element(G_DTYPE, g, i * stride), VEC * DT_SIZE(G_DTYPE));
    }
}

/* 4. */
static __device__ __forceinline__ void store_pieces(float *out, int64_t stride,
                                                    const float (&sum)[SEGMENT][VEC],
                                                    const float (&above)[VEC], int count)
{
#pragma unroll
    for (int i = 0; i < SEGMENT; i++) {
        uint32_t bits[VEC];
#pragma unroll
        for (int e = 0; e < VEC; e++)
            bits[e] = __float_as_uint(sum[i][e] + above[e]);
        if (i < count) {
#pragma unroll
            for (int e = 0; e < VEC; e += OUT_ACCESS / 4)
                store_words(out + i * stride + e, bits + e, OUT_ACCESS);
        }
    }
}

/* The block's pieces from `first` on, by all its threads; totals are free at the next barrier. */
static __device__ __forceinline__ void sum_pieces(const struct kda_gate_cumsum_args &args,
                                                  const struct span &span, int first,
                                                  float (&totals)[SEGMENTS][VEC][COLUMNS])
{
    const int segment = threadIdx.x / COLUMNS, place = threadIdx.x % COLUMNS;
    const int piece = min(first + place, PIECES - 1);
    const int head = piece / (K / VEC), column = piece % (K / VEC) * VEC;
    const int64_t token = span.first + segment * SEGMENT;
    const int count = first + place < PIECES ? (int)(span.end - token) : 0;
    const int64_t *gs = args.g_strides, *outs = args.out_strides;

    /* 2. */
    uint32_t words[SEGMENT][G_WORDS];
    float sum[SEGMENT][VEC], above[VEC];
    load_pieces(words, element(G_DTYPE, args.g, token * gs[0] + head * gs[1] + column), gs[0],
                count);
    const struct gate gate = gate_of(args, head);
#pragma unroll
    for (int e = 0; e < VEC; e++) {
        float bias = HAS_BIAS ? args.dt_bias[head * args.bias_stride + column + e] : 0.0f;
        float running = 0;
#pragma unroll
        for (int i = 0; i < SEGMENT; i++) {
            float value = decay_of(word_as_f32(G_DTYPE, words[i], e), bias, gate);
            running += i < count ? value : 0.0f;
            sum[i][e] = running;
        }
        totals[segment][e][place] = running;
    }

    /* 3. */
    __syncthreads();
#pragma unroll
    for (int e = 0; e < VEC; e++) {
        above[e] = 0;
        for (int s = 0; s < segment; s++)
            above[e] += totals[s][e][place];
    }

    store_pieces(args.out + token * outs[0] + head * outs[1] + column, outs[0], sum, above, count);
}

/* Blocks walk over a row's pieces in strides of the grid's y: any is right. */
extern "C" __global__ void __launch_bounds__(COLUMNS *SEGMENTS, 1)
    kda_gate_cumsum(const __grid_constant__ struct kda_gate_cumsum_args args)
{
    __shared__ float totals[SEGMENTS][VEC][COLUMNS];
    const struct span span = span_of(args, blockIdx.x); /* 1. */
    if (span.first >= span.end)
        return;
    for (int first = blockIdx.y * COLUMNS; first < PIECES; first += gridDim.y * COLUMNS) {
        sum_pieces(args, span, first, totals);
        __syncthreads();
    }
}
