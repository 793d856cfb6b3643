/* What the kernels of silu_and_mul share: items of 8 columns of a row, loaded as wide as the
 * alignment of x allows, joined, quantized. Where rows are no whole items, accesses are single
 * elements: then up is not where gate's alignment would have it. */
#ifndef SILU_AND_MUL_CUH
#define SILU_AND_MUL_CUH
#include "activation/silu_and_mul_args.h"
#include "common/cuda/activation.cuh"
#include "common/cuda/load.cuh"

#ifndef DTYPE
#define DTYPE DT_BF16
#endif
#ifndef ACTIVATION
#define ACTIVATION ACTIVATION_SILU
#endif
#ifndef QUANTIZE
#define QUANTIZE 0
#endif
#ifndef GROUP
#define GROUP 0
#endif
#ifndef HAS_LIMIT
#define HAS_LIMIT 0
#endif
/* Bytes of an access. */
#ifndef X_ACCESS
#define X_ACCESS 16
#endif
#ifndef OUT_ACCESS
#define OUT_ACCESS 16
#endif
#ifndef THREADS
#define THREADS 256
#endif

#define ITEM SILU_MUL_ITEM
#define SIZE DT_SIZE(DTYPE)
#define WORDS (ITEM * SIZE / 4)
#define IS_E4M3 (QUANTIZE == 1)
#define MOST (IS_E4M3 ? SILU_MUL_E4M3_MOST : SILU_MUL_I8_MOST)

/* An item of x as it is in memory. */
struct halves {
    uint32_t gate[WORDS], up[WORDS];
};

static __device__ __forceinline__ int columns_of(const struct silu_and_mul_args &args,
                                                 uint32_t item)
{
    int64_t left = args.width - (int64_t)item * ITEM;
    return left < ITEM ? (int)left : ITEM;
}

/* The first `count` elements of an item; the others are 0. */
static __device__ __forceinline__ void load_elements(uint32_t *words, const void *p, int count)
{
#pragma unroll
    for (int e = 0; e < ITEM; e++) {
        if (SIZE == 4)
            words[e] = e < count ? ((const uint32_t *)p)[e] : 0;
        else
            words[e / 2] = (e % 2 ? words[e / 2] : 0) |
                           (e < count ? (uint32_t)((const uint16_t *)p)[e] : 0) << e % 2 * 16;
    }
}

static __device__ __forceinline__ void
load_item(struct halves &halves, const struct silu_and_mul_args &args, int64_t token, uint32_t item)
{
    const void *gate = element(DTYPE, args.x, token * args.x_row + (int64_t)item * ITEM);
    const void *up = element(DTYPE, gate, args.width);
    if (args.width % ITEM == 0) {
        load_bytes<ITEM * SIZE, X_ACCESS>(halves.gate, gate);
        load_bytes<ITEM * SIZE, X_ACCESS>(halves.up, up);
    } else {
        load_elements(halves.gate, gate, columns_of(args, item));
        load_elements(halves.up, up, columns_of(args, item));
    }
}

static __device__ __forceinline__ void join(float *values, const struct halves &halves,
                                            const struct silu_and_mul_args &args)
{
#pragma unroll
    for (int e = 0; e < ITEM; e++)
        values[e] = activate(ACTIVATION, word_as_f32(DTYPE, halves.gate, e),
                             word_as_f32(DTYPE, halves.up, e),
                             HAS_LIMIT ? args.limit : __int_as_float(0x7f800000), args.alpha);
}

/* The greatest magnitude so far; NaN is left out. */
static __device__ __forceinline__ float greatest(float most, const float *values)
{
#pragma unroll
    for (int e = 0; e < ITEM; e++)
        most = fmaxf(most, fabsf(values[e]));
    return most;
}

static __device__ __forceinline__ float factor_of(float most)
{
    return fmaxf(__fdiv_rn(most, MOST), SILU_MUL_LEAST);
}

/* |value| < 127.5 to nearest even, NaN to 0: adding 1.5 2^23 leaves the integer at the bottom. */
static __device__ __forceinline__ uint32_t i8_from_f32(float value)
{
    value = value == value ? value : 0.0f;
    return __float_as_uint(__fadd_rn(value, 0x1.8p23f)) & 0xff;
}

/* Codes of two values. A value is the largest magnitude at most, whose code is the largest. */
static __device__ __forceinline__ uint32_t codes_of(float low, float high)
{
    return IS_E4M3 ? e4m3x2_from_f32(low, high) : i8_from_f32(low) | i8_from_f32(high) << 8;
}

static __device__ __forceinline__ void store_item(const struct silu_and_mul_args &args,
                                                  int64_t token, uint32_t item, const float *values)
{
    const int64_t at = token * args.out_row + (int64_t)item * ITEM;
    uint32_t words[WORDS];
    if (args.width % ITEM == 0) {
        words_from_f32(DTYPE, words, values, ITEM);
        store_bytes<ITEM * SIZE, OUT_ACCESS>((void *)element(DTYPE, args.out, at), words);
        return;
    }
    const int count = columns_of(args, item);
#pragma unroll
    for (int e = 0; e < ITEM; e++) {
        if (e < count)
            store_from_f32(DTYPE, (void *)element(DTYPE, args.out, at + e), values[e]);
    }
}

static __device__ __forceinline__ void store_codes(const struct silu_and_mul_args &args,
                                                   int64_t token, uint32_t item,
                                                   const float *values, float inverse)
{
    uint8_t *to = (uint8_t *)args.out + token * args.out_row + (int64_t)item * ITEM;
    uint32_t codes[2] = { 0, 0 };
#pragma unroll
    for (int e = 0; e < ITEM; e += 2)
        codes[e / 4] |= codes_of(values[e] * inverse, values[e + 1] * inverse) << e % 4 * 8;
    if (args.width % ITEM == 0) {
        store_bytes<ITEM, OUT_ACCESS>(to, codes);
        return;
    }
    const int count = columns_of(args, item);
#pragma unroll
    for (int e = 0; e < ITEM; e++) {
        if (e < count)
            to[e] = (uint8_t)(codes[e / 4] >> e % 4 * 8);
    }
}
#endif
