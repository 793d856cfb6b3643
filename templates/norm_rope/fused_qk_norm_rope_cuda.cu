/* fused_qk_norm_rope: blocks walk over the tokens, their threads over the heads of one.
 *
 *     thread    8 columns: 16 bytes; LANES of them a head, so that a warp has 1, 2 or 4 heads
 *     block     SLOTS heads at a time; blockIdx.y shares a token's heads where tokens are few
 *
 *     1. a thread's weights and turns, once
 *     2. of a token: cosines and sines of its columns, once for all heads
 *     3. of a head: load, mean square over its lanes, weight, partners from another lane, store
 *
 * Columns i and i + rotary_dim / 2 of a pair are in two lanes at the same place, since rotary_dim
 * is a multiple of 16; each computes its own half. */
#include "common/cuda/load.cuh"
#include "norm_rope/fused_qk_norm_rope_args.h"

#ifndef D
#define D 128
#endif
#ifndef ROTARY_DIM
#define ROTARY_DIM D
#endif
#ifndef DTYPE
#define DTYPE DT_BF16
#endif
#ifndef IS_INDEX_64
#define IS_INDEX_64 0
#endif
#ifndef IS_INTERLEAVED
#define IS_INTERLEAVED 0
#endif
/* Bytes of an access. */
#ifndef QKV_ACCESS
#define QKV_ACCESS 16
#endif
#ifndef WEIGHT_ACCESS
#define WEIGHT_ACCESS 16
#endif
#ifndef THREADS
#define THREADS 256
#endif

#define ITEM NORM_ROPE_ITEM
#define BYTES (ITEM * DT_SIZE(DTYPE))
#define WORDS (BYTES / 4)
#define LANES (D / ITEM)
#define SLOTS (THREADS / LANES)
#define HALF (ROTARY_DIM / 2)
#define TURNS (IS_INTERLEAVED ? ITEM / 2 : ITEM) /* pairs that a thread has a part in */

/* Of a thread's columns at a token: what they, and their partners, are multiplied by. */
struct rotation {
    float own[TURNS], partner[TURNS];
};

/* Sine and cosine to 1e-6 for |angle| < 2^24: whole turns are taken off in two parts. */
static __device__ __forceinline__ void sine_cosine(float angle, float &sine, float &cosine)
{
    float whole = rintf(angle * 0.15915494f);
    angle = fmaf(whole, -6.2831855f, angle);
    angle = fmaf(whole, 1.7484555e-7f, angle);
    asm("sin.approx.f32 %0, %1;" : "=f"(sine) : "f"(angle));
    asm("cos.approx.f32 %0, %1;" : "=f"(cosine) : "f"(angle));
}

static __device__ __forceinline__ float position_of(const struct fused_qk_norm_rope_args &args,
                                                    int64_t token)
{
    return IS_INDEX_64 ? (float)((const int64_t *)args.positions)[token]
                       : (float)((const int32_t *)args.positions)[token];
}

/* Of an interleaved pair (a, b) partner is what b is multiplied by to be taken from a; of columns
 * in the first half it is negative. */
static __device__ __forceinline__ struct rotation rotation_of(const float *turns, float position,
                                                              float factor, int column)
{
    struct rotation rotation;
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        float sine, cosine;
        sine_cosine(__fmul_rn(position, turns[i]), sine, cosine);
        rotation.own[i] = cosine * factor;
        rotation.partner[i] = (IS_INTERLEAVED || column < HALF ? -sine : sine) * factor;
    }
    return rotation;
}

/* A head's 8 columns; every lane of the warp comes here. */
static __device__ __forceinline__ void rotate(float *values, const struct rotation &rotation,
                                              int lane)
{
    const bool is_rotated = lane * ITEM < ROTARY_DIM;
    if (IS_INTERLEAVED) {
#pragma unroll
        for (int i = 0; i < TURNS && is_rotated; i++) {
            float a = values[2 * i], b = values[2 * i + 1];
            values[2 * i] = a * rotation.own[i] + b * rotation.partner[i];
            values[2 * i + 1] = b * rotation.own[i] - a * rotation.partner[i];
        }
        return;
    }
    const int apart = HALF / ITEM, partner = lane < apart ? lane + apart : lane - apart;
#pragma unroll
    for (int i = 0; i < ITEM; i++) {
        float other = __shfl_sync(~0u, values[i], is_rotated ? partner : lane, LANES);
        if (is_rotated)
            values[i] = values[i] * rotation.own[i % TURNS] + other * rotation.partner[i % TURNS];
    }
}

static __device__ __forceinline__ void normalise(float *values, const uint32_t *weight, float eps)
{
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < ITEM; i++)
        sum = fmaf(values[i], values[i], sum);
#pragma unroll
    for (int apart = LANES / 2; apart > 0; apart /= 2)
        sum += __shfl_xor_sync(~0u, sum, apart);
    const float factor = rsqrtf(sum / D + eps);
#pragma unroll
    for (int i = 0; i < ITEM; i++)
        values[i] *= factor * word_as_f32(DTYPE, weight, i);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    fused_qk_norm_rope(const __grid_constant__ struct fused_qk_norm_rope_args args)
{
    const int lane = threadIdx.x % LANES, slot = threadIdx.x / LANES, column = lane * ITEM;

    /* 1. */
    uint32_t q_weight[WORDS], k_weight[WORDS];
    float turns[TURNS];
    load_bytes<BYTES, WEIGHT_ACCESS>(q_weight, element(DTYPE, args.q_weight, column));
    load_bytes<BYTES, WEIGHT_ACCESS>(k_weight, element(DTYPE, args.k_weight, column));
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        int pair = IS_INTERLEAVED ? column / 2 + i : column < HALF ? column + i : column - HALF + i;
        turns[i] = column < ROTARY_DIM ? args.turns[pair] : 0.0f;
    }

    for (int64_t token = blockIdx.x; token < args.tokens; token += gridDim.x) {
        /* 2. */
        const struct rotation rotation =
            rotation_of(turns, position_of(args, token), args.attention_factor, column);

        /* 3. */
        for (int64_t first = blockIdx.y * SLOTS; first < args.heads; first += gridDim.y * SLOTS) {
            const int64_t head = first + slot;
            char *row =
                (char *)element(DTYPE, args.qkv, token * args.token + head * args.head + column);
            uint32_t words[WORDS] = {}, weight[WORDS];
            float values[ITEM];
            if (head < args.heads)
                load_bytes<BYTES, QKV_ACCESS>(words, row);
#pragma unroll
            for (int i = 0; i < WORDS; i++) /* of values: a choice of arrays would be in memory */
                weight[i] = head < args.hq ? q_weight[i] : k_weight[i];
#pragma unroll
            for (int i = 0; i < ITEM; i++)
                values[i] = word_as_f32(DTYPE, words, i);
            normalise(values, weight, args.eps);
            rotate(values, rotation, lane);
            words_from_f32(DTYPE, words, values, ITEM);
            if (head < args.heads)
                store_bytes<BYTES, QKV_ACCESS>(row, words);
        }
    }
}
