/* What the CUDA kernels of causal_conv1d and causal_conv1d_update share: a thread has the CONV_VEC
 * channels of one access, their weights in registers, and a window of the inputs before.
 *
 * The plan defines W, DTYPE, WEIGHT, BIAS, ACT, CONV_ACCESS and WEIGHT_ACCESS. */
#ifndef CONV_CUH
#define CONV_CUH
#include "common/cuda/load.cuh"

#ifndef W
#define W 4
#endif
#ifndef DTYPE
#define DTYPE DT_BF16
#endif
#ifndef WEIGHT
#define WEIGHT DT_F32
#endif
#ifndef BIAS
#define BIAS DT_NONE
#endif
#ifndef ACT
#define ACT 1
#endif
#ifndef CONV_ACCESS
#define CONV_ACCESS 16 /* bytes of x, y and states */
#endif
#ifndef WEIGHT_ACCESS
#define WEIGHT_ACCESS 16 /* divides what the taps of a channel take */
#endif
#define CONV_VEC (CONV_ACCESS / DT_SIZE(DTYPE))
#define CONV_WORDS (CONV_ACCESS < 4 ? 1 : CONV_ACCESS / 4)
static_assert(CONV_VEC >= 1, "an access holds an element");

/* An access as it stands in memory. */
struct raw {
    uint32_t words[CONV_WORDS];
};

struct filter {
    float taps[W][CONV_VEC], bias[CONV_VEC];
};

/* Channels from `channel` on, of which `count` exist. */
static __device__ __forceinline__ struct raw raw_load(const void *row, int64_t channel, int count)
{
    struct raw raw = {};
    const void *p = element(DTYPE, row, channel);
    if (count == CONV_VEC) {
        load_words(raw.words, p, CONV_ACCESS);
    } else {
#pragma unroll
        for (int e = 0; e < CONV_VEC; e++) {
            if (e < count && DT_SIZE(DTYPE) == 4)
                raw.words[e] = ((const uint32_t *)p)[e];
            else if (e < count)
                raw.words[e / 2] |= (uint32_t)((const uint16_t *)p)[e] << e % 2 * 16;
        }
    }
    return raw;
}

static __device__ __forceinline__ void raw_store(void *row, int64_t channel, int count,
                                                 const struct raw &raw)
{
    void *p = (void *)element(DTYPE, row, channel);
    if (count == CONV_VEC) {
        store_words(p, raw.words, CONV_ACCESS);
        return;
    }
#pragma unroll
    for (int e = 0; e < CONV_VEC; e++) {
        if (e < count && DT_SIZE(DTYPE) == 4)
            ((uint32_t *)p)[e] = raw.words[e];
        else if (e < count)
            ((uint16_t *)p)[e] = (uint16_t)(raw.words[e / 2] >> e % 2 * 16);
    }
}

static __device__ __forceinline__ void raw_widen(float (&values)[CONV_VEC], const struct raw &raw)
{
#pragma unroll
    for (int e = 0; e < CONV_VEC; e++)
        values[e] = word_as_f32(DTYPE, raw.words, e);
}

/* The taps of one channel, in as wide accesses as they are aligned to. */
static __device__ __forceinline__ void taps_load(float (&taps)[W], const void *p)
{
    if (WEIGHT_ACCESS >= 4) {
        uint32_t words[W];
#pragma unroll
        for (int i = 0; i < W * DT_SIZE(WEIGHT) / WEIGHT_ACCESS; i++)
            load_words(words + i * (WEIGHT_ACCESS / 4), (const char *)p + i * WEIGHT_ACCESS,
                       WEIGHT_ACCESS);
#pragma unroll
        for (int j = 0; j < W; j++)
            taps[j] = word_as_f32(WEIGHT, words, j);
    } else {
#pragma unroll
        for (int j = 0; j < W; j++)
            taps[j] = load_as_f32(WEIGHT, element(WEIGHT, p, j));
    }
}

static __device__ __forceinline__ void filter_load(struct filter &filter, const void *weight,
                                                   int64_t pitch, const void *bias, int64_t channel,
                                                   int count)
{
#pragma unroll
    for (int e = 0; e < CONV_VEC; e++) {
        float taps[W] = {};
        filter.bias[e] = 0;
        if (e < count) {
            taps_load(taps, element(WEIGHT, weight, (channel + e) * pitch));
            if (BIAS)
                filter.bias[e] = load_as_f32(BIAS, element(BIAS, bias, channel + e));
        }
#pragma unroll
        for (int j = 0; j < W; j++)
            filter.taps[j][e] = taps[j];
    }
}

/* x / (1 + e^-x), in two operations of the special function unit. -Inf becomes NaN, as 0 * Inf. */
static __device__ __forceinline__ float silu(float x)
{
    float power, inverse;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.44269504f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(power + 1.0f));
    return x * inverse;
}

/* One output; the window, oldest input first, moves on. */
static __device__ __forceinline__ struct raw
filter_step(const struct filter &filter, float (&window)[W - 1][CONV_VEC], const struct raw &raw)
{
    float now[CONV_VEC], sum[CONV_VEC];
    raw_widen(now, raw);
#pragma unroll
    for (int e = 0; e < CONV_VEC; e++) {
        sum[e] = filter.bias[e];
#pragma unroll
        for (int j = 0; j < W - 1; j++)
            sum[e] += filter.taps[j][e] * window[j][e];
        sum[e] += filter.taps[W - 1][e] * now[e];
        sum[e] = ACT ? silu(sum[e]) : sum[e];
#pragma unroll
        for (int j = 0; j < W - 1; j++)
            window[j][e] = j + 1 < W - 1 ? window[j + 1][e] : now[e];
    }
    struct raw out = {};
    words_from_f32(DTYPE, out.words, sum, CONV_VEC);
    return out;
}
#endif
