/* The filter of some channels on a CPU, and rows of channels under it: what causal_conv1d and
 * causal_conv1d_update share.
 *
 *     struct filter    the weights of up to FILTER_CHANNELS channels, a row for each tap, in f32
 *     filter_rows()    `group` tokens at once: their w - 1 + group input rows give `group` outputs
 *
 * The plan defines W, DTYPE, WEIGHT, BIAS and ACT. */
#ifndef CONV_FILTER_H
#define CONV_FILTER_H
#include "common/cpu/dtype.h"
#include "common/cpu/exp.h"

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

#define FILTER_CHANNELS 512
#define GROUP 4 /* tokens that share their loads of x and weights */

struct filter {
    float taps[W][FILTER_CHANNELS];
    float bias[FILTER_CHANNELS];
};

/* Weights of `count` channels, pitch elements apart, tap by tap. */
APART void filter_load(struct filter *filter, const void *weight, int64_t pitch, const void *bias,
                       int64_t count)
{
    for (int64_t c = 0; c < count; c++) {
        ROLLED
        for (int j = 0; j < W; j++)
            filter->taps[j][c] = load_one_as_f32(WEIGHT, element(WEIGHT, weight, c * pitch + j));
        filter->bias[c] = BIAS ? load_one_as_f32(BIAS, element(BIAS, bias, c)) : 0;
    }
}

/* 2^f for |f| <= 1/2: to the last bits of f32, or within 4e-6, far below what 16 bits round to. */
INLINE vec_f32 exp2_of_dtype(vec_f32 f)
{
    if (DTYPE == DT_F32)
        return exp2_fraction(f);
    vec_f32 p = splat_f32(9.6181291e-3f);
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    return p * f + 1.0f;
}

/* x / (1 + e^-x). The exponential's argument is bounded so that 2^n needs one factor: from
 * 2^-126 up to infinity, where -Inf becomes NaN as 0 * Inf, and NaN stays by the product. */
INLINE vec_f32 silu_f32(vec_f32 x)
{
    const float shift = 0x1.8p23f; /* rounds to an integer, which is then the lowest bits */
    vec_f32 power = x * -1.44269504f;
    power = select_f32(power > -126.0f, power, splat_f32(-126.0f));
    power = select_f32(power < 128.0f, power, splat_f32(128.0f));
    vec_f32 shifted = power + shift;
    vec_f32 scale = (vec_f32)(((vec_u32)shifted << 23) + 0x3f800000);
    return x * (1.0f / (1.0f + exp2_of_dtype(power - (shifted - shift)) * scale));
}

INLINE vec_f32 load_lanes(const void *row, int64_t c, int64_t lanes)
{
    const void *p = element(DTYPE, row, c);
    return lanes == VW ? load_as_f32(DTYPE, p) : load_part_as_f32(DTYPE, p, lanes);
}

#ifdef __AVX512BF16__
/* In one instruction; denormals become 0. */
INLINE vec_u16 narrow_to_bf16(vec_f32 value)
{
    typedef __bf16 vec_bf16 __attribute__((vector_size(2 * VW)));
    return (vec_u16)__builtin_ia32_cvtneps2bf16_512_mask(value, (vec_bf16)(vec_u16){ 0 }, 0xffff);
}
#endif

INLINE void store_lanes(void *row, int64_t c, vec_f32 value, int64_t lanes)
{
    void *p = (void *)element(DTYPE, row, c);
#if defined(__AVX512BF16__) && DTYPE == DT_BF16
    if (lanes == VW) {
        store_u16(p, narrow_to_bf16(value));
        return;
    }
#endif
    if (lanes == VW)
        store_from_f32(DTYPE, p, value);
    else
        store_part_from_f32(DTYPE, p, value, lanes);
}

/* `lanes` channels from c on: all inputs are read before an output is written. */
INLINE void filter_lanes(const struct filter *filter, const void *const *rows, void *const *out,
                         const int group, int64_t c, int64_t lanes)
{
    vec_f32 in[W - 1 + GROUP], sum[GROUP];
    UNROLL
    for (int r = 0; r < W - 1 + group; r++)
        in[r] = load_lanes(rows[r], c, lanes);
    UNROLL
    for (int u = 0; u < group; u++)
        sum[u] = *(const vec_f32_any *)&filter->bias[c];
    UNROLL
    for (int j = 0; j < W; j++) {
        vec_f32 tap = *(const vec_f32_any *)&filter->taps[j][c];
        UNROLL
        for (int u = 0; u < group; u++)
            sum[u] += tap * in[u + j];
    }
    UNROLL
    for (int u = 0; u < group; u++)
        store_lanes(out[u], c, ACT ? silu_f32(sum[u]) : sum[u], lanes);
}

/* rows[0 .. W - 1 + group) are inputs, oldest first; out[0 .. group) outputs of `count` channels.
 * Lanes past count are read from the filter, which is whole, and used nowhere. */
INLINE void filter_group(const struct filter *filter, const void *const *rows, void *const *out,
                         const int group, int64_t count)
{
    int64_t c = 0;
    for (; c + VW <= count; c += VW)
        filter_lanes(filter, rows, out, group, c, VW);
    if (c < count)
        filter_lanes(filter, rows, out, group, c, count - c);
}

__attribute__((unused)) APART void filter_four(const struct filter *filter, const void *const *rows,
                                               void *const *out, int64_t count)
{
    filter_group(filter, rows, out, GROUP, count);
}

APART void filter_one(const struct filter *filter, const void *const *rows, void *const *out,
                      int64_t count)
{
    filter_group(filter, rows, out, 1, count);
}
#endif
