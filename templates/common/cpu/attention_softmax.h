/* The softmax of attention, online: VW rows of scores at a time against a block of keys.
 *
 *     row      its scores of the block's keys become weights 2^(score factor - most)
 *     state    most (of the scores so far, times factor) and sum (of their weights), a lane a row
 *     keep     what earlier sums and outputs are multiplied by: 2^(most before - most now)
 *
 * Scores are in base 2: factor is the call's scale times log2 e. Maxima and sums are taken lane by
 * lane along a row and of VW rows at once across lanes, as a tree: the order is fixed by VW alone.
 * A key outside [first, end) of its row has weight 0, and a row that has seen nothing most
 * -infinity and sum 0. NaN among a row's scores makes its sum NaN. */
#ifndef QN_CPU_ATTENTION_SOFTMAX_H
#define QN_CPU_ATTENTION_SOFTMAX_H
#include "common/cpu/dtype.h"
#include "common/cpu/exp.h"
#include "common/cpu/transpose.h"

#define MINUS_INFINITY (-__builtin_inff())

/* What a maximum is of: b where a or b is NaN. */
INLINE vec_f32 larger(vec_f32 a, vec_f32 b)
{
#ifdef __AVX512F__
    return __builtin_ia32_maxps512(a, b, 4 /* MXCSR's rounding */);
#elif VW == 8
    return __builtin_ia32_maxps256(a, b);
#else
    return select_f32(a > b, a, b);
#endif
}

/* Lane i: the largest lane of v[i]. */
INLINE vec_f32 largest_each(vec_f32 v[VW])
{
    UNROLL
    for (int half = VW / 2; half > 0; half /= 2) {
        UNROLL
        for (int i = 0; i < half; i++)
            v[i] = larger(INTERLEAVE_LOW(v[i], v[i + half]), INTERLEAVE_HIGH(v[i], v[i + half]));
    }
    return v[0];
}

/* Lane i: the sum of the lanes of v[i]. */
INLINE vec_f32 total_each(vec_f32 v[VW])
{
    UNROLL
    for (int half = VW / 2; half > 0; half /= 2) {
        UNROLL
        for (int i = 0; i < half; i++)
            v[i] = INTERLEAVE_LOW(v[i], v[i + half]) + INTERLEAVE_HIGH(v[i], v[i + half]);
    }
    return v[0];
}

/* 2^x for x up to 0, or little above; -infinity gives 0. Weights that become bf16 need no more than
 * degree 4: within 3e-6. */
INLINE vec_f32 weight_of(vec_f32 x, const int is_short)
{
    if (!is_short)
        return exp2_f32(x);
    vec_f32 bounded = larger(splat_f32(-200), x), n = round_f32(bounded), f = bounded - n;
    vec_f32 p = splat_f32(0x1.399760p-7f);
    p = p * f + 0x1.ca1404p-5f;
    p = p * f + 0x1.ec06dap-3f;
    p = p * f + 0x1.62e0dep-1f;
    p = p * f + 0x1.ffffe8p-1f;
    return scale_by_power(p, n);
}

/* The logarithm in base 2 of a sum: 0 gives -infinity, what is not finite stays. x = 2^e m with m
 * about 1, ln m = 2 (t + t^3 / 3 + t^5 / 5 ...) of t = (m - 1) / (m + 1). */
INLINE vec_f32 log2_f32(vec_f32 x)
{
    vec_i32 e = ((vec_i32)x - 0x3f3504f3) >> 23;
    vec_f32 m = (vec_f32)((vec_i32)x - (e << 23)), t = (m - 1) / (m + 1), u = t * t;
    vec_f32 p = splat_f32(1 / 9.0f);
    p = p * u + 1 / 7.0f;
    p = p * u + 1 / 5.0f;
    p = p * u + 1 / 3.0f;
    p = (p * u + 1.0f) * t * 2.88539008f + __builtin_convertvector(e, vec_f32);
    p = select_f32((vec_i32)(x < __builtin_inff()), p, x);
    return select_f32(x == 0, splat_f32(MINUS_INFINITY), p);
}

/* c tanh(s / c): near 0 a series, where 1 - e^-2x would lose its digits. */
INLINE vec_f32 capped(vec_f32 s, float c)
{
    vec_f32 x = s / c, u = x * x, e = exp_f32(-2 * x);
    vec_f32 series = splat_f32(62 / 2835.0f);
    series = series * u - 17 / 315.0f;
    series = series * u + 2 / 15.0f;
    series = series * u - 1 / 3.0f;
    series = (series * u + 1.0f) * s;
    vec_f32 value = select_f32(e > 0x1p100f, splat_f32(-c), c * ((1 - e) / (1 + e)));
    return select_f32(u < 0.09f, series, value);
}
#endif
